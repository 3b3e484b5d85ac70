"""Putting an adapter onto a model: its targets become LoRA layers of the kind it asks for."""

from __future__ import annotations

import torch
from torch import nn

from laura.models.dora import DoraLinear
from laura.models.layers import names_within
from laura.models.lora import (
    LoraLinear,
    LoraSettings,
    Route,
    lora_layers,
    replace_module,
    target_names,
)
from laura.models.pissa import PissaLinear
from laura.models.targets import is_named
from laura.results.errors import AdapterError


def attach(model: nn.Module, settings: LoraSettings, seed: int, slots: int = 1) -> list[str]:
    """Replace the target Linears by LoRA layers and freeze everything else.

    The seed is set before the adapters are drawn, so the same seed gives the
    same adapters whatever ran before.

    Returns:
        Full names of the modules replaced, in the model's order.

    Raises:
        AdapterError: a target matches no Linear, the rank exceeds a matrix, or
            the model already carries LoRA layers.
        ModelError: the model has no layer of a number in `layers`.
    """
    if lora_layers(model):
        raise AdapterError("the model already has LoRA layers; detach them first")
    names = target_names(model, settings.targets)
    if settings.layers is not None:
        names = names_within(model, names, settings.layers)
    for pattern in (*settings.rank_pattern, *settings.alpha_pattern):
        if not any(is_named(name, pattern) for name in names):
            raise AdapterError(f"pattern {pattern!r} names none of the {len(names)} targets")
    kind = _layer_kind(settings)
    model.requires_grad_(False)
    route = Route()
    torch.manual_seed(seed)
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        rank, scale = settings.for_module(name)
        if rank > min(base.in_features, base.out_features):
            shape = f"{base.out_features} x {base.in_features}"
            raise AdapterError(f"rank {rank} exceeds {name} ({shape}); choose a smaller rank")
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        rank, scale = settings.for_module(name)
        layer = kind(base, rank, scale, settings.dropout, slots, route)
        replace_module(model, name, layer.train(base.training))
    return names


def _layer_kind(settings: LoraSettings) -> type[LoraLinear]:
    if settings.dora and settings.pissa:
        raise AdapterError("dora and pissa do not go together; choose one of the two")
    return DoraLinear if settings.dora else PissaLinear if settings.pissa else LoraLinear
