"""The decoder layers of a model, and those that an arm names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from laura.results.errors import ModelError


def decoder_layers(model: Any) -> nn.ModuleList:
    """The model's decoder layers, in order (`load.py` has checked that it has such a list)."""
    layers: nn.ModuleList = model.get_decoder().layers
    return layers


def chosen_layers(model: Any, numbers: Sequence[int]) -> list[nn.Module]:
    """The layers with these numbers, counted from 0.

    Raises:
        ModelError: the model has no such layer.
    """
    layers = decoder_layers(model)
    strange = [number for number in numbers if not 0 <= number < len(layers)]
    if strange:
        raise ModelError(
            f"layers names {', '.join(map(str, strange))}, but this model's {len(layers)} decoder "
            f"layers are numbered 0 to {len(layers) - 1}"
        )
    return [layers[number] for number in numbers]


def names_within(model: Any, names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Those of the named modules that lie in the layers with these numbers.

    Raises:
        ModelError: the model has no such layer, or none of the modules lies there.
    """
    inside = {id(module) for layer in chosen_layers(model, numbers) for module in layer.modules()}
    found = [name for name in names if id(model.get_submodule(name)) in inside]
    if not found:
        raise ModelError(f"none of the {len(names)} targets lies in layers {list(numbers)}")
    return found
