"""A model's linear maps made ready for serving: joined, narrow, with adapters beside them.

Maps that read the same input (q, k, v; gate, up) become one product; the modules stay where
the model looks for them, and the first that is asked computes for all. A plan, set for one
pass, says which tokens go through which adapter:

    y = W x + B_s (A_s x)   for the tokens of slot s (the factor alpha / r is in B)

Slots with few tokens each that lie side by side in a shelf go through one batched product,
filled up to the same number of tokens; a slot with many goes alone.

Shapes: T tokens of the pass, I in, O out, K slots of a batched product, M tokens of each,
R ranks of a group, r rank of one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from laura.models.packed import PackedMap
from laura.models.slots import MapGroup, Shelf, Slot

# From so many tokens on a slot goes alone: padding others up to it would cost more.
MANY_TOKENS = 8
JOINED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@dataclass
class Batched:
    """Neighbouring slots of a shelf, each with up to M tokens."""

    shelf: Shelf
    first: int
    count: int
    tokens: int

    def inner(self, group: str, x_PI: Tensor) -> Tensor | None:
        """A x of these slots' tokens, (K, M, R); None where they do not change the group."""
        stack = self.shelf.down.get(group)
        if stack is None:
            return None
        x_KMI = x_PI.unflatten(0, (self.count, self.tokens))
        return torch.bmm(x_KMI, stack[self.first : self.first + self.count].mT)

    def outer(
        self, name: str, names: Sequence[str], inner_KMR: Tensor | None, y_TO: Tensor
    ) -> Tensor:
        """B (A x) of one map of the group, (K * M, O); zeros where they do not change it."""
        rank = self.shelf.ranks.get(name, 0)
        if inner_KMR is None or not rank:
            return y_TO.new_zeros(self.count * self.tokens, y_TO.shape[1])
        start = sum(self.shelf.ranks.get(one, 0) for one in names[: names.index(name)])
        stack = self.shelf.up[name][self.first : self.first + self.count]
        return torch.bmm(inner_KMR[:, :, start : start + rank], stack).flatten(0, 1)


@dataclass
class Alone:
    """One slot and the place of its tokens in the pass."""

    shelf: Shelf
    place: int
    tokens: slice


@dataclass
class Plan:
    """Which tokens of a pass go through which adapters.

    Attributes:
        alone: Slots with many tokens.
        batched: Slots with few.
        gather: For the batched ones, one after another: which token of the pass.
        back: For every token of the pass: which of these it is; the one behind the last
            stands for none. None where token i is i.
        leaves_out: Whether a token is none of them.
    """

    alone: list[Alone] = field(default_factory=list)
    batched: list[Batched] = field(default_factory=list)
    gather: Tensor | None = None
    back: Tensor | None = None
    leaves_out: bool = False


@dataclass
class Board:
    """Where the plan of the coming pass stands, for all maps of a model."""

    plan: Plan = field(default_factory=Plan)


def plan_of(segments: Sequence[tuple[Slot | None, int]], device: torch.device) -> Plan:
    """The plan of a pass.

    Args:
        segments: (slot or None for the base, tokens) in the order of the pass.
        device: Where the model lives.
    """
    plan, few, start = Plan(), dict[Slot, list[int]](), 0
    for slot, tokens in segments:
        if slot is not None and tokens >= MANY_TOKENS:
            plan.alone.append(Alone(slot.shelf, slot.place, slice(start, start + tokens)))
        elif slot is not None:
            few.setdefault(slot, []).extend(range(start, start + tokens))
        start += tokens
    gather: list[int] = []
    back = [-1] * start
    for run in _runs(list(few), {slot: len(tokens) for slot, tokens in few.items()}):
        most = max(len(few[slot]) for slot in run)
        plan.batched.append(Batched(run[0].shelf, run[0].place, len(run), most))
        for slot in run:
            for number, token in enumerate(few[slot]):
                back[token] = len(gather) + number
            gather += few[slot] + [few[slot][0]] * (most - len(few[slot]))
    if gather:
        plan.gather = torch.tensor(gather, device=device)
        if back != list(range(len(gather))):
            plan.leaves_out = -1 in back
            places = [len(gather) if place < 0 else place for place in back]
            plan.back = torch.tensor(places, device=device)
    return plan


def _runs(slots: list[Slot], tokens: dict[Slot, int]) -> list[list[Slot]]:
    """Slots that are neighbours in their shelf and have about as many tokens each."""
    slots = sorted(slots, key=lambda slot: (id(slot.shelf), slot.place))
    runs: list[list[Slot]] = []
    for slot in slots:
        last = runs[-1][-1] if runs else None
        if last is None or last.shelf is not slot.shelf or last.place + 1 != slot.place:
            runs.append([slot])
        else:
            runs[-1].append(slot)
    parted: list[list[Slot]] = []
    for run in runs:
        # A slot with many times the others' tokens would fill all of them up.
        most = max(tokens[slot] for slot in run)
        if most * len(run) <= 2 * sum(tokens[slot] for slot in run) + 8:
            parted.append(run)
        else:
            parted += [[slot] for slot in run]
    return parted


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
        self.group, self.board = group, board
        weight = torch.cat([one.weight.detach().to(dtype) for one in maps])
        bias = None
        if any(one.bias is not None for one in maps):
            zeros = [one.weight.new_zeros(len(one.weight)) for one in maps]
            pairs = zip(zeros, maps, strict=True)
            bias = torch.cat([z if m.bias is None else m.bias.detach() for z, m in pairs]).to(dtype)
        self.product = PackedMap(weight, bias)
        self._read: Tensor | None = None
        self._parts: dict[str, Tensor] = {}

    def part(self, name: str, x: Tensor) -> Tensor:
        """One map's output for x, (..., out); computed once for all that read the same x."""
        if self._read is not x or name not in self._parts:
            self._read, self._parts = x, self._computed(x)
        found = self._parts.pop(name)
        if not self._parts:
            self._read = None
        return found

    def _computed(self, x: Tensor) -> dict[str, Tensor]:
        x_TI = x.reshape(-1, x.shape[-1]).to(self.product.dtype)
        y_TO = self.product(x_TI)
        parts = dict(zip(self.group.names, y_TO.split(self.group.outputs, dim=1), strict=True))
        plan = self.board.plan
        for one in plan.alone:
            self._add_alone(one, x_TI, parts)
        if plan.gather is not None:
            self._add_batched(plan, x_TI, parts)
        return {name: y.unflatten(0, x.shape[:-1]) for name, y in parts.items()}

    def _add_alone(self, one: Alone, x_TI: Tensor, parts: dict[str, Tensor]) -> None:
        stack = one.shelf.down.get(self.group.names[0])
        if stack is None:
            return
        inner_TR = x_TI[one.tokens] @ stack[one.place].T
        start = 0
        for name in self.group.names:
            rank = one.shelf.ranks.get(name, 0)
            if rank:
                inner = inner_TR[:, start : start + rank]
                parts[name][one.tokens].addmm_(inner, one.shelf.up[name][one.place])
                start += rank

    def _add_batched(self, plan: Plan, x_TI: Tensor, parts: dict[str, Tensor]) -> None:
        assert plan.gather is not None
        first = self.group.names[0]
        if not any(first in run.shelf.down for run in plan.batched):
            return
        x_PI = x_TI.index_select(0, plan.gather)
        inners, start = [], 0
        for run in plan.batched:
            end = start + run.count * run.tokens
            inners.append(run.inner(first, x_PI[start:end]))
            start = end
        for name, y in parts.items():
            runs = zip(plan.batched, inners, strict=True)
            sums = [run.outer(name, self.group.names, inner, y) for run, inner in runs]
            if plan.leaves_out:
                sums.append(y.new_zeros(1, y.shape[1]))
            found = sums[0] if len(sums) == 1 else torch.cat(sums)
            y += found if plan.back is None else found.index_select(0, plan.back)


class PartOfMaps(nn.Module):
    """Stands where the model has one of the joined maps."""

    def __init__(self, joined: JoinedMaps, name: str) -> None:
        super().__init__()
        self.joined, self.name = joined, name

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., out)."""
        return self.joined.part(self.name, x)


def join_maps(model: nn.Module, dtype: torch.dtype) -> tuple[list[JoinedMaps], Board]:
    """Make a model's maps ready; it serves only from then on.

    Weights of the maps are held once, in `dtype`.

    Returns:
        The joined maps, and the board on which the plan of a pass is put.
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
            for name in full:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, PartOfMaps(joined, name))
            made.append(joined)
    return made, board
