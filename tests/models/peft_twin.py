"""PEFT's version of one of our adapted models, the oracle of the LoRA variants."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from laura.models.lora import lora_layers
from tests.conftest import make_tiny_model

# PEFT 0.21 still asks transformers for an attribute it has deprecated.
WARNING = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
PARTS = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "magnitude.0", "oft_R": "R"}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_twin(base: Any = None, kind: str = "LoraConfig", **config: Any) -> Any:
    """PEFT on the tiny model (or `base`), with transformers' eager attention."""
    import peft

    base = make_tiny_model() if base is None else base
    base.set_attn_implementation("eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = getattr(peft, kind)(**{"target_modules": ALL, **config})
        return peft.get_peft_model(base, made)


def pairs(ours: Any, twin: Any) -> Iterator[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
    """Our trained parameters beside PEFT's, by our name; ours have a leading slot of one."""
    mine = dict(ours.named_parameters())
    found = 0
    for name, theirs in twin.named_parameters():
        part = next((part for part in PARTS if f".{part}." in name), None)
        if part is None:
            continue
        module = name.removeprefix("base_model.model.").split(f".{part}.")[0]
        found += 1
        yield f"{module}.{PARTS[part]}", mine[f"{module}.{PARTS[part]}"], theirs
    assert found == sum(p.requires_grad for p in mine.values())


def copy_to_twin(ours: Any, twin: Any) -> None:
    """Give PEFT's model our adapter."""
    with torch.no_grad():
        for _, mine, theirs in pairs(ours, twin):
            theirs.copy_(mine.reshape(theirs.shape))


def assert_same_gradients(ours: Any, twin: Any, **tolerance: float) -> None:
    """Gradients of every trained parameter agree, and are there."""
    for name, mine, theirs in pairs(ours, twin):
        assert mine.grad is not None and theirs.grad is not None, name
        assert float(theirs.grad.norm()) > 0, name
        gap = (mine.grad.reshape(theirs.grad.shape) - theirs.grad).norm() / theirs.grad.norm()
        assert gap < tolerance["relative"], (name, float(gap))


def fill(model: Any, seed: int = 3) -> None:
    """B, and DoRA's magnitudes, away from where they start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B += torch.randn_like(layer.B) * 0.1
            for vector in getattr(layer, "magnitude", ()):
                vector *= 1 + 0.2 * torch.rand_like(vector)


def batches(count: int) -> list[torch.Tensor]:
    """Random rows of 16 tokens, two a batch."""
    torch.manual_seed(17)
    return [torch.randint(3, 512, (2, 16)) for _ in range(count)]


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss, by transformers' own head."""
    logits = model(ids).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: Any, steps: int, lr: float = 3e-3) -> list[float]:
    """Losses of plain AdamW steps over what requires a gradient."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for ids in batches(steps):
        optimiser.zero_grad()
        value = loss(model, ids)
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    return losses
