"""Rotated inputs (OFT) beside LoRA and the base in one engine, against PEFT with one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from laura.engine.scheduler import TokenSequence
from laura.models.adapter_files import read_adapter
from laura.models.oft import with_turns
from tests.engine.alone import (
    ATTENTION,
    MLP,
    Heard,
    alone,
    hear,
    made_rotation,
    next_logits,
    serving,
    tiny,
)
from tests.engine.test_adapter_slots import slots_of
from tests.models import peft_twin as oracle
from tests.models.kernels import Kernels

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
# Operations of a layer more, where a token of the step is rotated.
ROTATING = 39
EXACT = {"use_cayley_neumann": False}
# PEFT's names of kinds of adapters, and what it is told.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 1, "lora_alpha": 1, "init_lora_weights": False}),
    "wide": ("OFTConfig", {"oft_block_size": 16, **EXACT}),
    "other": ("OFTConfig", {"oft_block_size": 16, **EXACT}),
    "part": ("OFTConfig", {"oft_block_size": 8, "target_modules": ["v_proj", "up_proj"], **EXACT}),
    "sum": ("OFTConfig", {"oft_block_size": 32}),
}
PROMPTS = [tuple(range(20, 57)), (5, 9, 200, 33), (7, 450, 2, 81, 90)]


def twin(name: str) -> Any:
    """PEFT's own model of one adapter."""
    kind, config = KINDS[name]
    model = oracle.make_twin(tiny(), kind, **config)
    torch.manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "oft_R" in key:
                parameter.normal_(std=0.08)
    return model.eval()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    made = {}
    for name in KINDS:
        folder = tmp_path_factory.mktemp("adapters") / name
        model = twin(name)
        model.save_pretrained(folder)
        made[name] = model, folder
    return made


def placed(engine: Any, folder: Path) -> Any:
    settings, tensors = read_adapter(folder)
    tensors = with_turns(settings, tensors)
    return engine.runner.slots.place(folder.name, folder.name, settings, tensors)


def expected(model: Any, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """A greedy answer and its log-probabilities."""
    tokens = alone(model, prompt, 12)
    logits = [next_logits(model, [*prompt, *tokens[:number]]) for number in range(12)]
    scores = torch.stack(logits).log_softmax(-1)[range(12), tokens]
    return tokens, scores.tolist()


@pytest.mark.parametrize("drafts", [False, True])
def test_a_mixed_batch_answers_as_peft_does_alone(
    twins: dict[str, tuple[Any, Path]], tiny_tokenizer: Any, drafts: bool
) -> None:
    """Once more from kept prompts, and after others have left."""
    models = {"": tiny(), **{name: model for name, (model, _) in twins.items()}}
    wanted = {(name, p): expected(model, p) for name, model in models.items() for p in PROMPTS}
    assert len({tuple(tokens) for tokens, _ in wanted.values()}) > 14
    with serving(tiny(), tiny_tokenizer, cache_bytes=2**25, drafts=drafts) as engine:
        slots = {name: placed(engine, folder) for name, (_, folder) in twins.items()}
        for leaving in ((), ("lora", "wide"), ("part",)):
            for name in leaving:
                assert engine.runner.slots.remove(name) and slots.pop(name)
            heard: dict[TokenSequence, Heard] = {}
            names = {
                TokenSequence("t", p, 12, slot=slots.get(name), top=0, ignore_end=True): name
                for p in PROMPTS
                for name in ("", *slots)
            }
            assert all(map(engine.add, names))
            hear(engine, heard)
            for one, name in names.items():
                tokens, scores = wanted[name, one.prompt]
                assert one.tokens == tokens, name
                assert [nats for _, nats, _ in heard[one].scores] == pytest.approx(scores, abs=2e-5)
            assert bool(leaving) == any(one.cached for one in names)


def test_memory_is_the_rotations_of_the_maps_that_read_the_same(tiny_tokenizer: Any) -> None:
    slots = slots_of(max_rank=16)
    whole = slots.place("all", "", *made_rotation(1, 16, (*ATTENTION, *MLP)))
    inputs = 3 * 64 + 64 + 2 * 64 + 128
    assert whole.bytes == slots.bytes == 4 * 2 * 16 * inputs
    # k and v read what q reads: their share is there, and zero.
    part = slots.place("q", "", *made_rotation(2, 16, ATTENTION[:1]))
    assert part.bytes == 4 * 2 * 16 * 3 * 64 == slots.bytes - whole.bytes
    assert slots.remove("all") and slots.remove("q") and not slots.bytes


def step(tokenizer: Any, kinds: dict[str, Any], asked: list[str | None]) -> Kernels:
    """The third token of these sequences, with these adapters in memory."""
    with serving(tiny(), tokenizer, cache_bytes=2**25) as engine:
        slots = {name: engine.runner.slots.place(name, "", *one) for name, one in kinds.items()}
        for number, name in enumerate(asked):
            prompt = tuple(range(20 + number, 30 + number))
            slot = slots[name] if name else None
            assert engine.add(TokenSequence(str(number), prompt, 8, ignore_end=True, slot=slot))
        for _ in range(3):
            engine.step()
        kernels = Kernels()
        with kernels:
            assert len(engine.step()) == len(asked)
    return kernels


def test_who_asks_no_rotation_pays_for_none(tiny_tokenizer: Any) -> None:
    turns = {str(n): made_rotation(n, 16, (*ATTENTION, *MLP)) for n in range(3)}
    plain = step(tiny_tokenizer, {}, [None, None])
    assert step(tiny_tokenizer, turns, [None, None]).counts == plain.counts
    one, several = (step(tiny_tokenizer, turns, names) for names in ([None, "0"], [None, *"012"]))
    assert (one.total - plain.total) / 2 <= ROTATING
    assert several.total - several.counts["aten.pad"] == one.total - one.counts["aten.pad"]
