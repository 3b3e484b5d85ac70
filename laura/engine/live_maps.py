"""A model's linear maps made ready for serving: joined, narrow, with adapters beside them.

Maps that read the same input (q, k, v; gate, up) become one product. A plan, set for one
pass, says which tokens go through which adapter (live_plan.py):

    y = W x + B_s (A_s x)   for the tokens of slot s (the factor alpha / r is in B)

Shapes: T tokens of the pass, I in, O out of all maps of a group, K slots of a batched
product, M tokens of each, P = sum of K * M, R ranks of a group; of a stack of m maps r rank
and o width of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from laura.engine.live_plan import Batched, Plan, plan_of
from laura.engine.packed import PackedMap
from laura.models.slots import MapGroup, Slot

JOINED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@dataclass
class Board:
    """Where the plan of the coming pass stands, for all maps of a model."""

    plan: Plan = field(default_factory=Plan)
    _made_for: tuple[object, ...] = ()

    def prepare(self, segments: Sequence[tuple[Slot | None, int]], device: torch.device) -> None:
        """Plan the coming pass; while the same answers run, the last plan stays.

        Args:
            segments: (slot or None for the base, tokens) in the order of the pass.
            device: Where the model lives.
        """
        made_for = tuple((slot and slot.where, tokens) for slot, tokens in segments)
        if made_for != self._made_for:
            self.clear()
            self.plan, self._made_for = plan_of(segments, device), made_for

    def clear(self) -> None:
        """Forget the plan, so that it keeps no adapter in memory."""
        self.plan.forget()
        self.plan, self._made_for = Plan(), ()


class JoinedMaps:
    """Linear maps of one input as a single product, and their adapters'.

    Args:
        group: Their names and widths.
        maps: The maps; they are not needed afterwards.
        board: Where the plan of a pass stands.
        dtype: Number format of the product.
    """

    def __init__(
        self, group: MapGroup, maps: Sequence[nn.Linear], board: Board, dtype: torch.dtype
    ) -> None:
        self.group, self.board, self.dtype = group, board, dtype
        weight = torch.cat([one.weight.detach().to(dtype) for one in maps])
        bias = None
        if any(one.bias is not None for one in maps):
            zeros = [one.weight.new_zeros(len(one.weight)) for one in maps]
            pairs = zip(zeros, maps, strict=True)
            bias = torch.cat([z if m.bias is None else m.bias.detach() for z, m in pairs]).to(dtype)
        self.product = PackedMap(weight, bias)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Outputs of all maps side by side, (T, O), for x in their number format."""
        y_TO = self.product(x_TI)
        plan = self.board.plan
        for lookup in plan.lookups:
            lookup.add(self.group, x_TI, y_TO)
        for run in plan.aligned:
            self._add(run, x_TI[run.tokens], y_TO[run.tokens])
        if plan.gather is not None:
            assert plan.back is not None
            x_PI = x_TI.index_select(0, plan.gather)
            # The row behind the last is for tokens that are in none of these runs.
            sums_PO = y_TO.new_zeros(len(x_PI) + 1, y_TO.shape[1])
            for run in plan.padded:
                self._add(run, x_PI[run.tokens], sums_PO[run.tokens])
            y_TO[: len(plan.back)] += sums_PO.index_select(0, plan.back)
        return y_TO

    def _add(self, run: Batched, x_PI: Tensor, y_PO: Tensor) -> None:
        """Add B (A x) of neighbouring slots' tokens to y."""
        factors = run.factors(self.group)
        if factors is None:
            return
        inner_KMR = torch.bmm(x_PI.unflatten(0, (run.count, run.each)), factors.down_KIR)
        for stack, up_KmrO in factors.ups:
            inner_KMmr = inner_KMR[:, :, stack.ranks].unflatten(2, (-1, stack.rank))
            inner = inner_KMmr.transpose(1, 2).flatten(0, 1)
            found = torch.bmm(inner, up_KmrO.flatten(0, 1)).unflatten(0, (run.count, -1))
            y_KMmo = y_PO[:, stack.columns].view(run.count, run.each, -1, stack.out)
            # Not baddbmm: into columns of a wider matrix it goes slot by slot.
            y_KMmo.add_(found.transpose(1, 2))


class PartOfMaps(nn.Module):
    """Stands where the model has one of the joined maps.

    The first of a group that is asked computes for all that read the same input.
    """

    def __init__(self, shared: SharedInput, name: str) -> None:
        super().__init__()
        self.shared, self.name = shared, name

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., out)."""
        return self.shared.part(self.name, x)


class SharedInput:
    """Joined maps that are asked one by one, with the same input."""

    def __init__(self, joined: JoinedMaps) -> None:
        self.joined = joined
        self._read: Tensor | None = None
        self._parts: dict[str, Tensor] = {}

    def part(self, name: str, x: Tensor) -> Tensor:
        """One map's output for x, (..., out)."""
        if self._read is not x or name not in self._parts:
            self._read, self._parts = x, self._computed(x)
        found = self._parts.pop(name)
        if not self._parts:
            self._read = None
        return found

    def _computed(self, x: Tensor) -> dict[str, Tensor]:
        group = self.joined.group
        y_TO = self.joined(x.reshape(-1, x.shape[-1]).to(self.joined.dtype))
        parts = zip(group.names, y_TO.split(group.outputs, dim=1), strict=True)
        return {name: y.unflatten(0, x.shape[:-1]) for name, y in parts}


def join_maps(model: nn.Module, dtype: torch.dtype) -> tuple[list[JoinedMaps], Board]:
    """Make a model's maps ready; it serves only from then on.

    Weights of the maps are held once, in `dtype`.

    Returns:
        The joined maps, layer by layer in the order of JOINED, and the board on which the
        plan of a pass is put.
    """
    board, made = Board(), []
    names = {module: name for name, module in model.named_modules()}
    for layer in model.get_decoder().layers:  # type: ignore[operator]
        for members in JOINED:
            maps = [layer.get_submodule(member) for member in members]
            full = tuple(f"{names[layer]}.{member}" for member in members)
            outputs = tuple(len(one.weight) for one in maps)
            group = MapGroup(full, maps[0].in_features, outputs)
            joined = JoinedMaps(group, maps, board, dtype)
            shared = SharedInput(joined)
            for name in full:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, PartOfMaps(shared, name))
            made.append(joined)
    return made, board
