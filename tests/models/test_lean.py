"""Lean norms, gated units and trained maps against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laura.models.adapters import attach
from laura.models.attention import Documents
from laura.models.device import autocast
from laura.models.lean import LeanGatedUnit, LeanLinear, LeanNorm, lean
from laura.models.lora import LoraSettings
from laura.models.losses import packed_loss_sum

CPU = torch.device("cpu")


def _gradients(model: Any, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(3, 512, (1, 24))
    inputs = {"input_ids": ids, "documents": Documents([10, 14])}
    model.zero_grad()
    with autocast(CPU, dtype):
        loss = packed_loss_sum(model, inputs, ids[0].roll(-1), dtype)
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return float(loss.detach()), {n: p.grad.clone() for n, p in trained.items()}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_equal_those_of_the_modules_replaced(tiny_model: Any, method: str) -> None:
    if method == "lora":
        attach(tiny_model, LoraSettings(rank=4), seed=0)
        with torch.no_grad():
            for name, parameter in tiny_model.named_parameters():
                if name.endswith(".B"):
                    parameter.normal_(std=0.1)
    else:
        with torch.no_grad():
            for name, parameter in tiny_model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
    loss, expected = _gradients(tiny_model, torch.float32)
    with lean(tiny_model):
        kinds = {type(module) for module in tiny_model.modules()}
        assert {LeanNorm, LeanGatedUnit} <= kinds
        assert (LeanLinear in kinds) == (method == "full")
        found_loss, found = _gradients(tiny_model, torch.float32)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4)


def _weight_casts_kept(model: Any) -> int:
    """How many bf16 copies of maps' weights a pass keeps for its gradient."""
    head = model.get_output_embeddings()
    maps = [m for m in model.modules() if hasattr(m, "weight") and m is not head]
    shapes = {m.weight.shape for m in maps if m.weight.dim() == 2}
    kept: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _gradients(model, torch.bfloat16)
    cast = [t for t in kept if t.dtype == torch.bfloat16]
    return sum(t.shape in shapes or t.T.shape in shapes for t in cast if t.dim() == 2)


def test_casts_of_trained_weights_are_not_kept(tiny_model: Any) -> None:
    assert _weight_casts_kept(tiny_model) >= 14  # seven maps in each of two layers
    with lean(tiny_model):
        assert _weight_casts_kept(tiny_model) == 0


def test_the_originals_are_back_afterwards_and_state_has_the_same_names(tiny_model: Any) -> None:
    before, names = list(tiny_model.modules()), list(tiny_model.state_dict())
    with pytest.raises(RuntimeError, match="stop"), lean(tiny_model):
        assert list(tiny_model.state_dict()) == names
        raise RuntimeError("stop")
    assert list(tiny_model.modules()) == before
