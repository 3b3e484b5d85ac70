"""Every family that Laura knows, each by a tiny random model, against transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy

from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest, ScoreRequest
from laura.engine.scheduler import TokenSequence
from laura.engine.vllm import check_adapter
from laura.models.adapter_files import BaseFacts, Bounds, linear_shapes, outline, read_adapter
from laura.models.adapters import attach, load_adapter, load_adapters, merge_check, save_adapter
from laura.models.attention import Documents
from laura.models.families import FAMILIES
from laura.models.lean import lean
from laura.models.load import load_base
from laura.models.lora import LoraSettings, detach, lora_layers
from laura.models.losses import packed_loss_sum
from laura.models.safe_files import OpenFolder
from laura.results.errors import AdapterError, ModelError
from laura.study.workbench import merge_adapter
from tests.engine.alone import Heard, hear, serving
from tests.models.families import KINDS, MIXTURES, make_family

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # by PEFT
)
LENGTHS = [60, 1, 33, 17]
IDS = torch.randint(3, 512, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
PROMPTS = [
    "the dog ran to the cat and how many of the " * 8 + ending
    for ending in ("apples", "mats are on it", "questions the man", "a")
]
TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def ours(model: Any) -> torch.Tensor:
    """Summed loss of the documents in one packed row, by Laura."""
    places = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    inputs = {"input_ids": IDS[None], "position_ids": places, "documents": Documents(LENGTHS)}
    labels = IDS.roll(-1)
    labels[torch.tensor(LENGTHS).cumsum(0) - 1] = -100
    with lean(model):
        return packed_loss_sum(model, inputs, labels, torch.float32)


def theirs(model: Any) -> torch.Tensor:
    """The same by transformers, document after document."""
    losses = []
    for ids in IDS[None].split(LENGTHS, dim=1):
        if ids.shape[1] > 1:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            losses.append(cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return torch.stack(losses).sum()


def one_step(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Trained parameters after one step of plain descent."""
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.optim.SGD(trained.values(), lr=1e-3).step()
    return {name: p.detach() for name, p in trained.items()}


def close(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5, msg=lambda m: f"{name}: {m}")


def test_every_family_is_here() -> None:
    assert set(FAMILIES) - set(KINDS) == {"llama", "qwen2", "qwen3"}  # tests/engine/test_decoder.py


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_step_is_transformers_own(kind: str) -> None:
    model, reference = make_family(kind), make_family(kind, "eager")
    loss, expected = ours(model.train()), theirs(reference.train())
    close(loss, expected)
    found = one_step(model, loss)
    for name, parameter in one_step(reference, expected).items():
        close(found[name], parameter, name)


def adapted(kind: str, targets: Any = "all") -> tuple[Any, LoraSettings]:
    """A model with a random adapter, B too."""
    model, settings = make_family(kind), LoraSettings(rank=4, alpha=8, targets=targets)
    attach(model, settings, seed=1)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.1)
    return model, settings


def by_peft(kind: str, folder: Path) -> Any:
    """transformers' model with the adapter of a folder, trainable, by PEFT."""
    return PeftModel.from_pretrained(make_family(kind, "eager"), folder, is_trainable=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_an_adapter_is_pefts(kind: str, tmp_path: Path) -> None:
    model, settings = adapted(kind)
    save_adapter(model, tmp_path / "before", settings, kind)
    reference = by_peft(kind, tmp_path / "before")
    loss, expected = ours(model.train()), theirs(reference)
    close(loss, expected)
    plain = theirs(make_family(kind, "eager"))
    assert abs(loss - plain) > 1
    one_step(model, loss), one_step(reference, expected)
    save_adapter(model, tmp_path / "after", settings, kind)
    read = by_peft(kind, tmp_path / "after")
    for (name, found), stepped in zip(read.named_parameters(), reference.parameters(), strict=True):
        close(found, stepped, name)
    changed = [name for name, p in reference.named_parameters() if p.requires_grad]
    assert len(changed) == len([n for n, p in read.named_parameters() if p.requires_grad]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_peft_are_read(kind: str, tmp_path: Path) -> None:
    names = TARGETS["mixtral"] if kind in MIXTURES else TARGETS.get(kind, "all-linear")
    stacked = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if kind in MIXTURES else None
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=names, target_parameters=stacked, init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(2)
    reference = get_peft_model(make_family(kind, "eager"), config).eval()
    reference.save_pretrained(tmp_path / "peft")
    model = make_family(kind)
    load_adapter(model, tmp_path / "peft")
    with torch.no_grad():
        close(ours(model), theirs(reference))
    differences = merge_check(model, IDS[None, :40])
    assert differences["unmerged"] == 0
    assert differences["merged"] < 1e-4 * differences["update"] > 0
    detach(model)
    with torch.no_grad():
        assert torch.equal(ours(model), ours(make_family(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_transformers_own(kind: str, tiny_tokenizer: Any) -> None:
    engine, reference = Engine(make_family(kind), tiny_tokenizer), make_family(kind, "eager")
    answers = engine.generate([GenerateRequest(text, (), 12) for text in PROMPTS])
    scores = engine.score([ScoreRequest(text, " on the mat") for text in PROMPTS])
    for text, answer, score in zip(PROMPTS, answers, scores, strict=True):
        ids = tiny_tokenizer.encode(text)
        told = greedy(reference, ids, 12)
        assert answer.text == tiny_tokenizer.decode(told).split("<|im_end|>")[0]
        whole = [*ids, *tiny_tokenizer.encode(" on the mat")]
        with torch.no_grad():
            nats = reference(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected = sum(float(nats[i - 1, whole[i]]) for i in range(len(ids), len(whole)))
        assert score.loglikelihood == pytest.approx(expected, abs=1e-3)


@torch.no_grad()
def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The most likely tokens, by whole passes of transformers, up to the end token."""
    tokens = list(ids)
    while len(tokens) < len(ids) + count and tokens[-1] != 2:
        logits = model(torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(ids) :]


@pytest.mark.parametrize("kind", KINDS)
def test_serving_is_transformers_own(kind: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, settings = adapted(kind, "attention" if kind in MIXTURES else "all")
    save_adapter(model, tmp_path, settings, kind)
    prompts = [tiny_tokenizer.encode(text) for text in PROMPTS]
    with serving(make_family(kind), tiny_tokenizer, cache_bytes=2**25, part_tokens=40) as engine:
        slot = engine.runner.slots.place("a", "", *read_adapter(tmp_path))
        asked = [
            TokenSequence("t", tuple(ids), 9, slot if n % 2 else None, top=0, ignore_end=True)
            for n, ids in enumerate(prompts)
        ]
        heard: dict[TokenSequence, Heard] = {}
        for one in asked:
            engine.add(one)
            hear(engine, heard, steps=2)
        hear(engine, heard)
    base, tuned = make_family(kind, "eager"), by_peft(kind, tmp_path).eval()
    for one in asked:
        whole = [*one.prompt, *one.tokens]
        with torch.no_grad():
            logits = (tuned if one.slot else base)(torch.tensor([whole])).logits
        nats = logits[0].log_softmax(-1)
        for place, (token, value, _) in enumerate(heard[one].scores, len(one.prompt) - 1):
            assert token == int(nats[place].argmax())
            assert value == pytest.approx(nats[place, token].item(), abs=1e-4)


def test_experts_of_several_adapters_in_one_pass(tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, settings = adapted("mixtral", ["gate_up_proj", "down_proj", "v_proj"])
    save_adapter(model, tmp_path, settings, "mixtral")
    tuned, base = by_peft("mixtral", tmp_path).eval(), make_family("mixtral", "eager")
    model = make_family("mixtral")
    load_adapters(model, [tmp_path])
    engine = Engine(model, tiny_tokenizer, adapters={"a": 0})
    asked = [ScoreRequest(text, " mat", who) for text in PROMPTS for who in ("a", None)]
    for request, answer in zip(asked, engine.score(asked), strict=True):
        ids, more = (tiny_tokenizer.encode(t) for t in (request.context, " mat"))
        with torch.no_grad():
            logits = (tuned if request.adapter else base)(torch.tensor([[*ids, *more]])).logits
        nats = logits[0].log_softmax(-1)
        expected = sum(float(nats[i, token]) for i, token in enumerate(more, len(ids) - 1))
        assert answer.loglikelihood == pytest.approx(expected, abs=1e-3)


def test_experts_are_merged_into_the_model(tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, settings = adapted("mixtral")
    save_adapter(model, tmp_path / "adapter", settings, "mixtral")
    make_family("mixtral").save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    merge_adapter(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out", device="cpu")
    with torch.no_grad():
        merged = theirs(load_base(str(tmp_path / "out"), device="cpu").model)
        close(merged, theirs(by_peft("mixtral", tmp_path / "adapter")))


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.1}, {"dora": True}, {"pissa": True}, {"protect": 2}]
)
def test_experts_take_plain_lora_alone(changes: dict[str, Any]) -> None:
    model = make_family("mixtral")
    with pytest.raises(AdapterError, match=r"experts take plain LoRA .* targets: attention"):
        attach(model, LoraSettings(rank=2, **changes), seed=0)
    attach(model, LoraSettings(rank=2, targets="attention", **changes), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_parameters": ["mlp.gate.weight"]}, "uses target_parameters=.*cannot represent"),
        ({"target_parameters": 3}, "uses target_parameters=3"),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern together with target_parameters"),
        ({"r": 3}, "made for another base"),
        ({"r": "four"}, "r 'four' is unusable"),
    ],
)
def test_files_of_experts_that_cannot_be_read(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, settings = adapted("mixtral", "mlp")
    save_adapter(model, tmp_path, settings, "mixtral")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(AdapterError, match=message):
        load_adapter(make_family("mixtral"), tmp_path)


def test_experts_are_not_held_in_nf4(tiny_tokenizer: Any, tmp_path: Path) -> None:
    make_family("mixtral").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'mixtral' model, whose experts lie stacked; nf4 holds"):
        load_base(str(tmp_path), quantization="nf4", device="cpu")


def test_a_server_takes_no_adapter_of_experts(tmp_path: Path) -> None:
    model, settings = adapted("mixtral", "mlp")
    save_adapter(model, tmp_path, settings, "mixtral")
    facts = BaseFacts("b", None, linear_shapes(make_family("mixtral")))
    message = "changes experts, which this server's engine cannot serve; merge it"
    with OpenFolder(tmp_path, tmp_path) as opened, pytest.raises(AdapterError, match=message):
        outline(opened, facts, Bounds())
    with pytest.raises(AdapterError, match="updates of experts, vLLM is given"):
        check_adapter(read_adapter(tmp_path)[0])
