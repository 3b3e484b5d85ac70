"""Adapters between models and PEFT folders, both ways; `adapter_files.py` reads the folders.

`attach` puts one onto a model: its targets become LoRA layers of the kind it asks for. `fold`
writes one into a model's weights, also one that holds more than LoRA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from laura.models.activations import CordaLinear, NullLinear
from laura.models.adapter_files import (
    CONFIG,
    MAGNITUDE,
    PREFIX,
    WEIGHTS,
    check_fit,
    linear_shapes,
    read_adapter,
    read_whole,
)
from laura.models.experts import close_experts, joined_factors, open_experts
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
from laura.models.model_card import CARD, model_card
from laura.models.oft import OFT_R, OftLinear, oft_config
from laura.models.targets import is_named
from laura.results.errors import AdapterError
from laura.results.store import disk_faults, write_json, write_text


def save_adapter(
    model: nn.Module,
    folder: Path,
    settings: LoraSettings,
    base_name: str,
    slot: int = 0,
    revision: str | None = None,
) -> None:
    """Write one slot as a PEFT adapter on the base (float32), with a model card.

    PiSSA's and those of its kind become plain ones of twice the rank.

    Args:
        model: A model with LoRA layers.
        folder: Where the files go.
        settings: What the layers were attached with.
        base_name: Hub id or folder of the base, by which PEFT finds it.
        slot: Which slot to write.
        revision: Commit of a base on the Hub.
    """
    layers = lora_layers(model)
    if not layers:
        raise AdapterError("the model has no LoRA layers to save")
    if settings.started:
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
    own = oft_config(settings) if settings.block_size else _lora_config(settings)
    config = {
        **own,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": kinds if everywhere else sorted(layers),
        "layers_to_transform": list(numbers) if everywhere and kinds and numbers else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    # A key more would be another adapter, by the hash of its files.
    if parameters:
        config["target_parameters"] = sorted(parameters)
    if revision is not None:
        config["revision"] = revision
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
    text = f"Trained with Laura on `{base_name}`."
    write_text(folder / CARD, model_card(base_name, "LoRA adapter", text))


def _lora_config(settings: LoraSettings) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "rank_pattern": settings.rank_pattern,
        "alpha_pattern": settings.alpha_pattern,
        "init_lora_weights": True,
    }


def _weights(layer: LoraLinear, slot: int) -> dict[str, Tensor]:
    """What a file holds of one layer, by the last part of its name."""
    if isinstance(layer, OftLinear):
        return {OFT_R: layer.scales[slot] * layer.R[slot]}
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
    up with zeros, which add exactly nothing. LoRA and OFT do not mix. The model then answers
    as its base until a slot is routed (`lora.route`).

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
    if len({(one.block_size, one.terms) for _, one, _ in read}) > 1:
        raise AdapterError(
            "LoRA and OFT, or OFT of several block sizes or kinds, do not go onto one model at "
            "once; load one after another, or merge them"
        )
    rank = max(ranks.values())
    pattern = {name: own for name, own in ranks.items() if own != rank}
    dora = any(settings.dora for _, settings, _ in read)
    union = LoraSettings(
        rank=rank,
        targets=tuple(ranks),
        rank_pattern=pattern,
        dora=dora,
        block_size=read[0][1].block_size,
        terms=read[0][1].terms,
    )
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
            for place in _places(layer, slot).values():
                place.zero_()
        layer.scales[slot] = 0.0
        if isinstance(layer, DoraLinear) and not settings.dora:
            layer.plain.add(slot)
        if name in settings.targets:
            _fill(layer, slot, name, tensors, settings)


def _places(layer: LoraLinear, slot: int) -> dict[str, Tensor]:
    """A slot's factors or rotation, by the last part of their names in a file."""
    if isinstance(layer, OftLinear):
        return {OFT_R: layer.R[slot]}
    return {"lora_A.weight": layer.A[slot], "lora_B.weight": layer.B[slot]}


def _fill(
    layer: LoraLinear, slot: int, name: str, tensors: dict[str, Tensor], settings: LoraSettings
) -> None:
    layer.scales[slot] = settings.for_module(name)[1]
    places = _places(layer, slot)
    if settings.dora and isinstance(layer, DoraLinear):
        places[MAGNITUDE] = layer.magnitude[slot]
    with torch.no_grad():
        for key, place in places.items():
            own = tensors[f"{PREFIX}{name}.{key}"]
            place[tuple(map(slice, own.shape))].copy_(own)


def refill(model: nn.Module, folder: Path) -> None:
    """Put the adapter in a PEFT folder into layers that were attached with its settings.

    Raises:
        AdapterError: as `load_adapter`.
    """
    settings, tensors = read_adapter(folder)
    for name, layer in lora_layers(model).items():
        _fill(layer, 0, name, tensors, settings)


def fold(model: Any, folder: Path) -> None:
    """Write the adapter in a PEFT folder into a plain model's own weights.

    Also what cannot stand beside them: what was trained whole takes its place, then updates are
    added, to the output map too. That map is a weight of its own from then on where it was the
    embedding and either of them changes, as it is in PEFT.

    Raises:
        AdapterError: as `load_adapter`; the model is left as it was.
    """
    settings, tensors, whole = read_whole(folder)
    _check_base(model, settings, tensors, folder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in whole.items():
        needed = tuple(parameters[name].shape) if name in parameters else "no such parameter"
        if needed != tuple(tensor.shape):
            raise AdapterError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, this base has {needed}; the "
                "adapter was made for another base, or for one with added tokens"
            )
    if any(map(expert_of, settings.targets)):
        open_experts(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    changed = {model.get_submodule(name) for name in settings.targets}
    changed |= {model.get_submodule(name.rpartition(".")[0]) for name in whole}
    if head.weight is embedding.weight and changed & {head, embedding}:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for name, tensor in whole.items():
            model.get_parameter(name).copy_(tensor)
        for name in settings.targets:
            base = model.get_submodule(name)
            layer = _layer_kind(settings)(base, *settings.for_module(name), 0.0, 1, Route())
            _fill(layer, 0, name, tensors, settings)
            base.weight.copy_(layer.tuned())
    close_experts(model)


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


def attach(
    model: nn.Module,
    settings: LoraSettings,
    seed: int,
    slots: int = 1,
    moments: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Replace the target Linears by LoRA layers and freeze everything else.

    Of stacked experts every map gets one (`experts.py`).

    The seed is set before the adapters are drawn, so the same seed gives the
    same adapters whatever ran before. `moments` are what LoRA-Null and CorDA start from
    (`activations.input_moments`).

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
        if settings.block_size and inner % settings.block_size:
            raise AdapterError(
                f"block_size {settings.block_size} does not divide the {inner} inputs of {name}; "
                "choose one that divides them"
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
        own = {"moment_II": moments[name]} if moments else {}
        layer = kind(base, rank, scale, settings.dropout, slots, route, **own)
        replace_module(model, name, layer.train(base.training))
    return names


def _layer_kind(settings: LoraSettings) -> Callable[..., LoraLinear]:
    kinds: dict[str, Callable[..., LoraLinear]] = {
        "dora": DoraLinear,
        "pissa": PissaLinear,
        "milora": MiloraLinear,
        "lora_null": NullLinear,
        "corda": CordaLinear,
        "protect": functools.partial(OploraLinear, protect=settings.protect),
        "block_size": functools.partial(
            OftLinear, block_size=settings.block_size, terms=settings.terms
        ),
    }
    wanted = [name for name in kinds if getattr(settings, name)]
    if len(wanted) > 1:
        raise AdapterError(f"{' and '.join(wanted)} do not go together; choose one of the two")
    return kinds[wanted[0]] if wanted else LoraLinear
