"""What the tests of the live engine share: a lively tiny model, adapters, each answer alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from laura.engine.detokenizer import Score
from laura.engine.model_runner import FusedRunner
from laura.engine.scheduler import Scheduler, TokenSequence
from laura.models.adapter_files import PREFIX
from laura.models.lora import LoraSettings
from laura.models.oft import OFT_R, with_turns
from tests.conftest import make_tiny_model
from tests.engine.test_many_adapters import lively

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def tiny() -> Any:
    """The lively tiny model, the same weights every time."""
    return lively(make_tiny_model())


@contextmanager
def serving(
    model: Any,
    tokenizer: Any,
    *,
    precision: torch.dtype = torch.float32,
    slots: int = 16,
    **settings: Any,
) -> Iterator[Any]:
    """A scheduler over a model that is taken over to serve."""
    yield Scheduler(FusedRunner(model, precision, slots), tokenizer, **settings)


def made_adapter(
    seed: int, rank: int, kinds: Sequence[str], layers: Sequence[int] = (0, 1), scale: float = 2.0
) -> tuple[LoraSettings, dict[str, Tensor]]:
    """A random adapter of the tiny model, as its file would have it."""
    source = torch.Generator().manual_seed(seed)
    model = make_tiny_model()
    names = [f"model.layers.{layer}.{kind}" for layer in layers for kind in kinds]
    tensors = {}
    for name in names:
        linear = model.get_submodule(name)
        a = torch.randn(rank, linear.in_features, generator=source) * 0.2
        b = torch.randn(linear.out_features, rank, generator=source) * 0.2
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    return LoraSettings(rank=rank, alpha=scale * rank, targets=tuple(names)), tensors


def made_rotation(
    seed: int, block_size: int, kinds: Sequence[str]
) -> tuple[LoraSettings, dict[str, Tensor]]:
    """A random OFT adapter of the tiny model, as a slot takes it."""
    source = torch.Generator().manual_seed(seed)
    model, b = make_tiny_model(), block_size
    names = [f"model.layers.{layer}.{kind}" for layer in (0, 1) for kind in kinds]
    tensors = {
        f"{PREFIX}{name}.{OFT_R}": torch.randn(
            model.get_submodule(name).in_features // b, b * (b - 1) // 2, generator=source
        ) / b
        for name in names
    }  # fmt: skip
    settings = LoraSettings(rank=1, alpha=1.0, targets=tuple(names), block_size=b)
    return settings, with_turns(settings, tensors)


def merged(
    adapter: tuple[LoraSettings, dict[str, Tensor]] | None, make: Callable[[], Any] = tiny
) -> Any:
    """The tiny model with an adapter's update added to its weights."""
    model = make()
    if adapter is None:
        return model
    settings, tensors = adapter
    with torch.no_grad():
        for name in settings.targets:
            a, b = (tensors[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB")
            model.get_submodule(name).weight += settings.for_module(name)[1] * (b @ a)
    return model


def alone(model: Any, prompt: Sequence[int], limit: int) -> list[int]:
    """Greedy answer without cache, batch or engine; it does not end early."""
    tokens = list(prompt)
    for _ in range(limit):
        tokens.append(int(next_logits(model, tokens).argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def next_logits(model: Any, tokens: Sequence[int]) -> Tensor:
    """Logits of what follows."""
    logits: Tensor = model(torch.tensor([list(tokens)])).logits[0, -1]
    return logits


@dataclass
class Heard:
    """All that was told of a continuation."""

    text: str = ""
    scores: list[Score] = field(default_factory=list)
    prompt: tuple[Score, ...] = ()
    finish: str | None = None
    fault: str = ""


def hear(engine: Scheduler, heard: dict[TokenSequence, Heard], steps: int | None = None) -> None:
    """Step until nothing is left, or so many times."""
    done = 0
    while engine.busy and (steps is None or done < steps):
        for news in engine.step():
            own = heard.setdefault(news.sequence, Heard())
            own.text += news.delta.text
            own.scores += news.delta.scores
            own.prompt += news.prompt
            own.finish, own.fault = news.finish, news.fault
        done += 1


def one_answer(engine: Scheduler, wanted: TokenSequence) -> Heard:
    """A continuation from its beginning to its end."""
    heard: dict[TokenSequence, Heard] = {}
    assert engine.add(wanted)
    hear(engine, heard)
    return heard[wanted]


def written(folder: Path, adapter: tuple[LoraSettings, dict[str, Tensor]]) -> Path:
    """An adapter as a PEFT folder."""
    settings, tensors = adapter
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny",
        "r": settings.rank, "lora_alpha": settings.alpha,
        "target_modules": list(settings.targets), "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
