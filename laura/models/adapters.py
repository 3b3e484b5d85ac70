"""Adapters between models and PEFT folders, both ways; `adapter_files.py` reads the folders.

`attach` puts one onto a model: its targets become LoRA layers of the kind it asks for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from laura.models.adapter_files import (
    CONFIG,
    MAGNITUDE,
    PREFIX,
    WEIGHTS,
    check_fit,
    linear_shapes,
    read_adapter,
)
from laura.models.experts import joined_factors, open_experts
from laura.models.families import expert_of
from laura.models.layers import names_within
from laura.models.lora import (
    LoraLinear,
    LoraSettings,
    Route,
    detach,
    lora_layers,
    merge,
    replace_module,
    route,
    target_names,
    unmerge,
)
from laura.models.lora_variants import (
    DoraLinear,
    MiloraLinear,
    OploraLinear,
    PissaLinear,
    plain_settings,
)
from laura.models.targets import is_named
from laura.results.errors import AdapterError
from laura.results.store import disk_faults, write_json


def save_adapter(
    model: nn.Module, folder: Path, settings: LoraSettings, base_name: str, slot: int = 0
) -> None:
    """Write one slot as a PEFT adapter on the base (float32).

    PiSSA's and MiLoRA's become plain ones of twice the rank.

    Args:
        model: A model with LoRA layers.
        folder: Where the two files go.
        settings: What the layers were attached with.
        base_name: Name or path of the base, for the reader.
        slot: Which slot to write.
    """
    layers = lora_layers(model)
    if not layers:
        raise AdapterError("the model has no LoRA layers to save")
    if settings.pissa or settings.milora:
        settings = plain_settings(settings)
    experts = {name: layers.pop(name) for name in list(layers) if expert_of(name)}
    stacked = joined_factors({name: layer.factors(slot) for name, layer in experts.items()})
    for name, layer in layers.items():
        stacked |= {f"{name}.{key}": tensor for key, tensor in _weights(layer, slot).items()}
    tensors = {
        f"{PREFIX}{name}": tensor.detach().float().cpu().contiguous()
        for name, tensor in stacked.items()
    }
    parameters = {f"{place[0]}.{place[2]}" for place in map(expert_of, experts) if place}
    kinds = sorted({name.rsplit(".", 1)[-1] for name in layers})
    named, numbers = _names_ending(model, kinds), settings.layers
    if numbers is not None and kinds:
        named = names_within(model, named, numbers)
    everywhere = len(named) == len(layers)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "target_modules": kinds if everywhere else sorted(layers),
        "layers_to_transform": list(numbers) if everywhere and kinds and numbers else None,
        "rank_pattern": settings.rank_pattern,
        "alpha_pattern": settings.alpha_pattern,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    if parameters:
        config["target_parameters"] = sorted(parameters)
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def _weights(layer: LoraLinear, slot: int) -> dict[str, Tensor]:
    """What a file holds of one layer, by the last part of its name."""
    a_RI, b_OR = layer.factors(slot)
    weights = {"lora_A.weight": a_RI, "lora_B.weight": b_OR}
    if isinstance(layer, DoraLinear) and slot not in layer.plain:
        weights[MAGNITUDE] = layer.magnitude[slot]
    return weights


def load_adapter(model: nn.Module, folder: Path) -> LoraSettings:
    """Attach the adapter in a PEFT folder to a plain model.

    Returns:
        The settings it carries, with ranks and alphas resolved by module.

    Raises:
        AdapterError: files are missing or damaged, the adapter uses something
            we cannot represent, or it does not fit this model.
    """
    (settings,) = load_adapters(model, [folder])
    for layer in lora_layers(model).values():
        layer.route.slot = 0
    return settings


def load_adapters(model: nn.Module, folders: Sequence[Path]) -> list[LoraSettings]:
    """Attach several PEFT adapters to a plain model, each in a slot of its own, in order.

    They may differ in rank and in the modules they touch: a slot's matrices are filled
    up with zeros, which add exactly nothing. The model then answers as its base until
    a slot is routed (`lora.route`).

    Returns:
        The settings each carries.

    Raises:
        AdapterError: as `load_adapter`; the model is left as it was.
    """
    read = [(folder, *read_adapter(folder)) for folder in folders]
    ranks: dict[str, int] = {}
    for folder, settings, tensors in read:
        _check_base(model, settings, tensors, folder)
        for name in settings.targets:
            ranks[name] = max(ranks.get(name, 0), settings.for_module(name)[0])
    if not ranks:
        raise AdapterError("no adapter is given; name at least one folder")
    rank = max(ranks.values())
    pattern = {name: own for name, own in ranks.items() if own != rank}
    dora = any(settings.dora for _, settings, _ in read)
    union = LoraSettings(rank=rank, targets=tuple(ranks), rank_pattern=pattern, dora=dora)
    attach(model, union, seed=0, slots=len(read))
    try:
        for slot, (_, settings, tensors) in enumerate(read):
            _fill_slot(model, slot, tensors, settings)
    except BaseException:
        detach(model)
        raise
    for layer in lora_layers(model).values():
        layer.route.slot = None
    return [settings for _, settings, _ in read]


def _check_base(
    model: nn.Module, settings: LoraSettings, tensors: dict[str, Tensor], folder: Path
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_fit(settings, shapes, linear_shapes(model), folder)


def _fill_slot(
    model: nn.Module, slot: int, tensors: dict[str, Tensor], settings: LoraSettings
) -> None:
    for name, layer in lora_layers(model).items():
        with torch.no_grad():
            layer.A[slot].zero_()
            layer.B[slot].zero_()
        layer.scales[slot] = 0.0
        if isinstance(layer, DoraLinear) and not settings.dora:
            layer.plain.add(slot)
        if name not in settings.targets:
            continue
        rank, layer.scales[slot] = settings.for_module(name)
        places = {"lora_A.weight": layer.A[slot][:rank], "lora_B.weight": layer.B[slot][:, :rank]}
        if settings.dora and isinstance(layer, DoraLinear):
            places[MAGNITUDE] = layer.magnitude[slot]
        with torch.no_grad():
            for key, place in places.items():
                place.copy_(tensors[f"{PREFIX}{name}.{key}"])


def merge_check(model: Any, input_ids: Tensor) -> dict[str, float]:
    """Merge, compare, unmerge, compare; the largest difference of logits each time.

    Returns:
        `merged`: adapter beside the base against adapter folded in;
        `unmerged`: before against after, which must be 0; `update`: adapter
        against base, to judge the others by.
    """
    with torch.inference_mode():
        beside = model(input_ids).logits.float()
        with route(model, None):
            base = model(input_ids).logits.float()
        merge(model)
        folded = model(input_ids).logits.float()
        unmerge(model)
        after = model(input_ids).logits.float()
    return {
        "merged": float((beside - folded).abs().max()),
        "unmerged": float((beside - after).abs().max()),
        "update": float((beside - base).abs().max()),
    }


def _names_ending(model: nn.Module, kinds: list[str]) -> list[str]:
    return [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] in kinds]


def attach(model: nn.Module, settings: LoraSettings, seed: int, slots: int = 1) -> list[str]:
    """Replace the target Linears by LoRA layers and freeze everything else.

    Of stacked experts every map gets one (`experts.py`).

    The seed is set before the adapters are drawn, so the same seed gives the
    same adapters whatever ran before.

    Returns:
        Full names of the modules replaced, in the model's order.

    Raises:
        AdapterError: a target matches no Linear, the rank exceeds a matrix, the model already
            carries LoRA layers, or experts are asked for what PEFT's cannot have.
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
    shapes = linear_shapes(model)
    for name in names:
        out, inner = shapes[name]
        rank, scale = settings.for_module(name)
        if rank > min(out, inner):
            raise AdapterError(
                f"rank {rank} exceeds {name} ({out} x {inner}); choose a smaller rank"
            )
        if settings.protect >= min(out, inner):
            raise AdapterError(
                f"protect {settings.protect} leaves nothing of {name} "
                f"({out} x {inner}) to train; choose a smaller one"
            )
    if any(map(expert_of, names)):
        if kind is not LoraLinear or settings.dropout:
            raise AdapterError(
                "experts take plain LoRA without dropout, as PEFT's do; leave dora, init, protect "
                "and dropout out, or give targets: attention"
            )
        open_experts(model)
    model.requires_grad_(False)
    route = Route()
    torch.manual_seed(seed)
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        rank, scale = settings.for_module(name)
        layer = kind(base, rank, scale, settings.dropout, slots, route)
        replace_module(model, name, layer.train(base.training))
    return names


def _layer_kind(settings: LoraSettings) -> Callable[..., LoraLinear]:
    kinds: dict[str, Callable[..., LoraLinear]] = {
        "dora": DoraLinear,
        "pissa": PissaLinear,
        "milora": MiloraLinear,
        "protect": functools.partial(OploraLinear, protect=settings.protect),
    }
    wanted = [name for name in kinds if getattr(settings, name)]
    if len(wanted) > 1:
        raise AdapterError(f"{' and '.join(wanted)} do not go together; choose one of the two")
    return kinds[wanted[0]] if wanted else LoraLinear
