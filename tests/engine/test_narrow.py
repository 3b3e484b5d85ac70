"""Maps for few rows against torch's own product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from laura.engine.engine import NarrowLinear, narrow
from laura.models.adapters import attach
from laura.models.device import FEW_ROWS, linear
from laura.models.lora import LoraSettings, lora_layers

SHAPES = [(1,), (1, 1), (3, 1), (1, 5), (2, 3), (4, 1), (FEW_ROWS,), (FEW_ROWS + 1,), (0,)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_few_rows_give_torchs_product(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 48), torch.randn(24, 48)
    offset = torch.randn(24) if bias else None
    expected = functional.linear(x, weight, offset)
    with torch.inference_mode():
        found = linear(x, weight, offset)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    # A model splits the result into heads without copying it.
    assert found.view(*shape, 4, 6).shape == (*shape, 4, 6)


def test_gradients_and_other_types_are_left_alone() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(4, 8)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))
    with torch.inference_mode():
        low = linear(x.bfloat16(), weight.bfloat16())
        assert torch.equal(low, functional.linear(x.bfloat16(), weight.bfloat16()))


def test_the_model_is_as_it_was_afterwards(tiny_model: Any) -> None:
    attach(tiny_model, LoraSettings(rank=2, targets=("q_proj",)), seed=0)
    before = dict(tiny_model.named_modules())
    with pytest.raises(ZeroDivisionError), narrow(tiny_model):
        kinds = {type(module) for module in tiny_model.modules()}
        assert NarrowLinear in kinds
        assert all(layer.product is linear for layer in lora_layers(tiny_model).values())
        assert type(tiny_model.lm_head) is nn.Linear
        raise ZeroDivisionError
    assert dict(tiny_model.named_modules()) == before
    assert all(layer.product is functional.linear for layer in lora_layers(tiny_model).values())
