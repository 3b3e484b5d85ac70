"""Experts of a mixture with linear maps of their own, which LoRA can replace.

transformers stacks the experts of a layer in two parameters, gate and up joined:

    mlp.experts.gate_up_proj (E, 2F, C)     mlp.experts.down_proj (E, C, F)

While adapters change them, `Experts` stands in their place. Its maps `mlp.experts.3.down_proj` are
views of those parameters, so nothing is held twice, and what is merged into them is merged into
the model. PEFT calls the same adapters `target_parameters`: those of all experts lie in one A,
(E r, in), expert by expert, and one B, (out, r E), the experts of a rank side by side. Where both
parameters are changed, its wrapper of the first stands within that of the second.

Shapes: N tokens, E experts, K of them a token, C width, F hidden width of an expert, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from laura.models.families import EXPERT_MAPS, EXPERTS, expert_of
from laura.models.targets import is_named

INNER = "base_layer."


class Experts(nn.Module):
    """The experts of a layer, one by one.

    Args:
        stacked: transformers' module.
    """

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self._kept = (stacked,)  # no part of this module: its parameters are here already
        for number in range(len(stacked.down_proj)):
            expert: Any = nn.Module()
            for name in EXPERT_MAPS:
                weight_OI = getattr(stacked, name).data[number]
                out, inner = weight_OI.shape
                linear = nn.Linear(inner, out, bias=False, device="meta")
                linear.weight = nn.Parameter(weight_OI, requires_grad=False)
                setattr(expert, name, linear)
            self.add_module(str(number), expert.train(stacked.training))

    @property
    def stacked(self) -> Any:
        """transformers' module, whose memory the maps are."""
        return self._kept[0]

    def forward(self, x_NC: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Sum of what a token's experts give, times their weights; (N, C)."""
        result, experts = torch.zeros_like(x_NC), list[Any](self.children())
        for number, expert in enumerate(experts):
            tokens, places = (experts_NK == number).nonzero(as_tuple=True)
            # Without tokens an adapter still gets its gradient, which is zero.
            if len(tokens) or torch.is_grad_enabled():
                with _routed(expert, tokens):
                    gate, up = expert.gate_up_proj(x_NC[tokens]).chunk(2, dim=-1)
                    y = expert.down_proj(self.stacked.act_fn(gate) * up)
                y = y * weights_NK[tokens, places, None]
                result.index_add_(0, tokens, y.to(result.dtype))
        return result


@contextmanager
def _routed(expert: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Within the block the segments of the route count these of its tokens alone, in order."""
    routes = (getattr(module, "route", None) for module in expert.children())
    route = next((one for one in routes if one is not None), None)
    if route is None or route.segments is None:
        yield
        return
    before, abreast = route.segments, route.abreast
    ends = torch.tensor([size for _, size in before], device=tokens.device).cumsum(0)
    owners = torch.bucketize(tokens, ends, right=True)
    counts = owners.bincount(minlength=len(before)).tolist()
    route.segments = tuple((slot, n) for (slot, _), n in zip(before, counts, strict=True))
    route.abreast = False
    try:
        yield
    finally:
        route.segments, route.abreast = before, abreast


def stacked_experts(model: nn.Module) -> dict[str, Any]:
    """The modules of experts that lie stacked, by their full names."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_named(name, EXPERTS) and isinstance(getattr(module, "down_proj", None), Tensor)
    }


def expert_maps(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every map of an expert that lies stacked, by the name it has in `Experts`."""
    return {
        f"{name}.{number}.{own}": tuple(getattr(stacked, own).shape[1:])
        for name, stacked in stacked_experts(model).items()
        for number in range(len(stacked.down_proj))
        for own in EXPERT_MAPS
    }


def open_experts(model: nn.Module) -> None:
    """Put `Experts` in the place of all that lie stacked."""
    for name, stacked in stacked_experts(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Experts(stacked))


def close_experts(model: nn.Module) -> None:
    """Put transformers' modules back."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, Experts)}
    for name, module in found.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.stacked.train(module.training))


def is_experts_map(name: Any) -> bool:
    """Whether one of `target_parameters` is a map of stacked experts."""
    return isinstance(name, str) and any(is_named(name, f"experts.{own}") for own in EXPERT_MAPS)


def joined_factors(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A and B of experts' maps, by the maps' full names, as PEFT's file has them."""
    found: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = {}
    for name, factors in layers.items():
        place = expert_of(name)
        assert place is not None
        found.setdefault(place[0], {}).setdefault(place[2], []).append(factors)
    tensors = {}
    for module, maps in found.items():
        for own, pairs in maps.items():
            prefix = f"{module}.{_inner(own, maps)}lora_"
            a_ERI, b_EOR = (torch.stack(factors) for factors in zip(*pairs, strict=True))
            tensors[f"{prefix}A.weight"] = a_ERI.flatten(0, 1)
            tensors[f"{prefix}B.weight"] = b_EOR.permute(1, 2, 0).flatten(1)
    return tensors


def parted_factors(
    tensors: Mapping[str, Tensor], targets: list[str], rank: Any
) -> dict[str, Tensor]:
    """The inverse of `joined_factors`; what is of no expert stays.

    Args:
        tensors: By their names in PEFT's file.
        targets: Its `target_parameters`.
        rank: Its `r`; where a tensor is not so made, it stays as it is.
    """
    maps = {target.rsplit(".", 1)[-1] for target in targets}
    owners = {_inner(own, maps): own for own in maps}
    parted = {}
    for name, tensor in tensors.items():
        module, _, rest = name.partition(f".{EXPERTS}.")
        wrapper, lora, letter = rest.rpartition("lora_")
        dim = {"A.weight": 0, "B.weight": 1}.get(letter)
        made = dim is not None and wrapper in owners and isinstance(rank, int) and rank > 0
        if dim is None or not made or tensor.shape[dim] % rank:
            parted[name] = tensor
            continue
        if dim == 0:
            stacked = tensor.unflatten(0, (-1, rank))
        else:
            stacked = tensor.unflatten(1, (rank, -1)).permute(2, 0, 1)
        for number, part in enumerate(stacked):
            parted[f"{module}.{EXPERTS}.{number}.{owners[wrapper]}.{lora}{letter}"] = part
    return parted


def _inner(own: str, maps: Any) -> str:
    """Where the factors of a parameter lie among PEFT's nested wrappers."""
    return INNER if len(maps) > 1 and own == EXPERT_MAPS[0] else ""
