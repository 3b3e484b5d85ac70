"""LoRA slots: memory for adapters that come and go, ready for one product over many of them.

Adapters that change the same modules with the same ranks lie in one array: their matrices
are stacked, so the tokens of several adapters go through one batched product, and each
takes its own bytes and no more (an array has at most a fifth of its slots to spare).

    array     A of a group of maps (slots, in, ranks)     B of a stack (slots, maps, rank, out)

Maps that read the same input (q, k, v; gate, up) form a group; their A's lie together.
Neighbours among them with the same rank and width form a stack (k, v; gate, up). The factor
alpha / r is in B. A lies with its input first: its rows are then what a lookup sums
(lora_batch.py), and MKL's product of several tokens sums each in the same order, however
many there are.

Shapes: I in, O out and r rank of one map, R ranks of a group together, K slots, m maps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from laura.models.adapter_files import PREFIX, check_fit, peak
from laura.models.lora import LoraSettings
from laura.results.errors import AdapterError

# torch computes a product of fewer multiplications in a loop of its own, whose last bit may be
# another than that of MKL's; that one is the same for every number of tokens from eight on.
FEWEST_MULTIPLICATIONS, FEWEST_TOKENS = 400, 8


@dataclass(frozen=True)
class LinearGroup:
    """Linear maps that read the same input.

    Attributes:
        names: Full module names, in the order of their outputs.
        inputs: Width of the input.
        outputs: Width of every output.
    """

    names: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """Neighbours of a group that are changed with the same rank and have the same width.

    Attributes:
        names: Their full module names.
        rank: Of each.
        out: Width of each.
        ranks: Where theirs are among the ranks of the group.
        columns: Where their outputs are among those of the group.
    """

    names: tuple[str, ...]
    rank: int
    out: int
    ranks: slice
    columns: slice


def stacks_of(group: LinearGroup, ranks: Mapping[str, int]) -> list[Stack]:
    """The stacks of a group's maps that are changed, with their ranks, in their order."""
    found: list[Stack] = []
    rank_start = column = 0
    for name, out in zip(group.names, group.outputs, strict=True):
        rank = ranks.get(name, 0)
        last = found[-1] if found else None
        rank_end, end = rank_start + rank, column + out
        if last and (last.rank, last.out, last.columns.stop) == (rank, out, column):
            widths = slice(last.ranks.start, rank_end), slice(last.columns.start, end)
            found[-1] = Stack((*last.names, name), rank, out, *widths)
        elif rank:
            found.append(Stack((name,), rank, out, slice(rank_start, rank_end), slice(column, end)))
        rank_start, column = rank_end, end
    return found


@dataclass(frozen=True, eq=False)
class Factors:
    """Matrices of K neighbouring slots for one group of maps; views into the array.

    Attributes:
        down_KIR: A of all maps that are changed.
        ups: The stacks of these maps, each with its B, (K, m, r, O).
    """

    down_KIR: Tensor
    ups: list[tuple[Stack, Tensor]]


@dataclass(eq=False)
class Slot:
    """An adapter in memory.

    Attributes:
        name: Its name.
        digest: What its bytes are; another digest is another adapter.
        array: Where it lies.
        index: Which slot of the array; changes when the array is packed anew.
        pinned: Whether it stays though it is not used.
        uses: Answers in work that go through it.
        seen: Number of its last use; the lowest leaves first.
    """

    name: str
    digest: str
    array: SlotArray
    index: int
    pinned: bool = False
    uses: int = 0
    seen: int = 0

    @property
    def bytes(self) -> int:
        """Memory of its matrices."""
        return self.array.slot_bytes

    @property
    def where(self) -> tuple[object, ...]:
        """Its place among all arrays; of two that are there, no two are equal."""
        return id(self.array), self.index


@dataclass(eq=False)
class SlotArray:
    """Adapters of the same modules and ranks, stacked.

    Attributes:
        stacks: The stacks of every group that is changed, by the name of its first map.
        shapes: Of one slot: A of every such group, by that name, and B of every stack, by the
            name of its first map and ":B".
        slots: Who lies where; at most a fifth of them is None.
        tensors: All matrices of a shape, (slots, *shape).
        views: What was looked up by `factors` in the passes of one plan.
    """

    stacks: dict[str, list[Stack]]
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device
    slots: list[Slot | None] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    views: dict[tuple[str, int, int], Factors | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        groups: Sequence[LinearGroup],
        ranks: Mapping[str, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> SlotArray:
        """An empty one, for adapters that change these modules with these ranks."""
        stacks: dict[str, list[Stack]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for group in groups:
            found = stacks_of(group, ranks)
            if not found:
                continue
            stacks[group.names[0]] = found
            shapes[group.names[0]] = (group.inputs, found[-1].ranks.stop)
            for stack in found:
                shapes[up_key(stack)] = (len(stack.names), stack.rank, stack.out)
        return cls(stacks, shapes, dtype, device)

    @cached_property
    def fewest_tokens(self) -> int:
        """Tokens of a slot from which on each one's product is the same whatever their number."""
        smallest = min(math.prod(shape[-2:]) for shape in self.shapes.values())
        return max(FEWEST_TOKENS, -(-FEWEST_MULTIPLICATIONS // smallest))

    @property
    def slot_bytes(self) -> int:
        """Memory of one adapter."""
        return sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize

    def factors(self, group: LinearGroup, first: int, count: int) -> Factors | None:
        """Matrices of `count` neighbours for a group of maps; None where they do not change it."""
        name = group.names[0]
        key = name, first, count
        if key not in self.views:
            span = slice(first, first + count)
            stacks = self.stacks.get(name)
            ups = [(stack, self.tensors[up_key(stack)][span]) for stack in stacks or ()]
            self.views[key] = Factors(self.tensors[name][span], ups) if stacks else None
        return self.views[key]

    def pack(self, wanted: int) -> None:
        """Have room for `wanted` adapters and a few more; those that are there stay."""
        held = [slot for slot in self.slots if slot is not None]
        old = [slot.index for slot in held]
        size = wanted + wanted // 5
        self.views.clear()  # they would keep the stacks of before
        for name, shape in self.shapes.items():
            # One tensor after another: the array is never held twice.
            fresh = torch.zeros(size, *shape, dtype=self.dtype, device=self.device)
            for index, before in enumerate(old):
                fresh[index] = self.tensors[name][before]
            self.tensors[name] = fresh
        self.slots = [*held, *[None] * (size - len(held))]
        for index, slot in enumerate(held):
            slot.index = index


class Slots:
    """A bounded number of adapters in memory; the least recently used leaves.

    Args:
        groups: The model's maps.
        most: Most adapters.
        max_rank: Highest rank of a module.
        dtype: Number format in which the matrices are kept.
        device: Where the model lives.
    """

    def __init__(
        self,
        groups: Sequence[LinearGroup],
        most: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups, self.most, self.max_rank = groups, most, max_rank
        self.dtype, self.device = dtype, device
        self.held: dict[str, Slot] = {}
        self._linears = {
            name: (out, group.inputs)
            for group in groups
            for name, out in zip(group.names, group.outputs, strict=True)
        }
        self._arrays: dict[tuple[tuple[str, int], ...], SlotArray] = {}
        self._clock = itertools.count(1)

    @property
    def bytes(self) -> int:
        """Memory of all arrays."""
        return sum(len(array.slots) * array.slot_bytes for array in self._arrays.values())

    def find(self, name: str, digest: str) -> Slot | None:
        """The slot of this very adapter, if it has one."""
        slot = self.held.get(name)
        return slot if slot is not None and slot.digest == digest else None

    def use(self, slot: Slot) -> None:
        """Count one more answer that goes through a slot."""
        slot.uses += 1
        slot.seen = next(self._clock)

    def leave(self, slot: Slot) -> None:
        """Count one answer less."""
        slot.uses -= 1
        slot.seen = next(self._clock)

    def room_for(self, name: str) -> bool:
        """Whether an adapter of this name can be placed now."""
        old = self.held.get(name)
        if old is not None:
            return not old.uses
        return len(self.held) < self.most or self._oldest() is not None

    def longest_unused(self) -> Slot | None:
        """Which adapter should leave next, in use or not; None where all are pinned."""
        free = [slot for slot in self.held.values() if not slot.pinned]
        return min(free, key=lambda slot: slot.seen, default=None)

    def place(
        self, name: str, digest: str, settings: LoraSettings, tensors: Mapping[str, Tensor]
    ) -> Slot:
        """Put an adapter into memory; the least recently used one leaves where all are taken.

        An older one of the same name is replaced. Nothing is touched before all is checked.

        Args:
            name: Its name.
            digest: What its bytes are.
            settings: Its settings, with full module names as targets.
            tensors: Its weights, by their names in the file.

        Raises:
            AdapterError: it does not fit this model, or every place is in use or pinned.
        """
        self.check(name, settings, tensors)
        if not self.room_for(name):
            raise AdapterError(
                f"adapter {name} has no place: all {self.most} are in use or pinned; "
                "unpin one, or start with more slots"
            )
        ranks = {module: settings.for_module(module)[0] for module in settings.targets}
        key = tuple(sorted(ranks.items()))
        leaver = self.held.get(name) or (self._oldest() if len(self.held) >= self.most else None)
        array = self._arrays.get(key)
        if leaver is not None:
            self._take_out(leaver, pack=leaver.array is not array)
        if array is None:
            array = self._arrays[key] = SlotArray.of(self.groups, ranks, self.dtype, self.device)
        if None not in array.slots:
            array.pack(len(array.slots) + 1)
        index = array.slots.index(None)
        slot = Slot(name, digest, array, index, seen=next(self._clock))
        self._fill(slot, settings, tensors)
        array.slots[index] = self.held[name] = slot
        return slot

    def remove(self, name: str) -> bool:
        """Free an adapter's slot unless it is in use; whether it had one."""
        slot = self.held.get(name)
        if slot is None or slot.uses:
            return False
        self._take_out(slot)
        return True

    def check(self, name: str, settings: LoraSettings, tensors: Mapping[str, Tensor]) -> None:
        """Refuse an adapter that this model cannot carry.

        Raises:
            AdapterError: what does not fit.
        """
        if settings.dora:
            raise AdapterError(
                f"adapter {name} uses DoRA, which the server does not run; "
                "merge it into a base of its own, or train without dora"
            )
        label = Path(f"adapter {name}")
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        check_fit(settings, shapes, self._linears, label)
        for module in settings.targets:
            rank = settings.for_module(module)[0]
            if not 1 <= rank <= self.max_rank:
                raise AdapterError(
                    f"{label} has rank {rank} at {module}; allowed are 1 to {self.max_rank}"
                )
        for key, tensor in tensors.items():
            peak(key, tensor, label)

    def _oldest(self) -> Slot | None:
        free = [slot for slot in self.held.values() if not slot.pinned and not slot.uses]
        return min(free, key=lambda slot: slot.seen, default=None)

    def _take_out(self, slot: Slot, pack: bool = True) -> None:
        array = slot.array
        array.slots[slot.index] = None
        del self.held[slot.name]
        left = sum(one is not None for one in array.slots)
        if not left and pack:
            self._arrays = {k: one for k, one in self._arrays.items() if one is not array}
        elif pack and len(array.slots) > left + left // 5:
            array.pack(left)

    @torch.no_grad()
    def _fill(self, slot: Slot, settings: LoraSettings, tensors: Mapping[str, Tensor]) -> None:
        array, index = slot.array, slot.index
        for group, stacks in array.stacks.items():
            down_IR = array.tensors[group][index]
            for stack in stacks:
                ups_mrO = array.tensors[up_key(stack)][index]
                downs = down_IR[:, stack.ranks].split(stack.rank, dim=1)
                for name, down_Ir, up_rO in zip(stack.names, downs, ups_mrO, strict=True):
                    _, scale = settings.for_module(name)
                    a_rI, b_Or = (tensors[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB")
                    down_Ir.copy_(a_rI.T)
                    up_rO.copy_(b_Or.float().T * scale)


def up_key(stack: Stack) -> str:
    """Where an array keeps B of a stack."""
    return f"{stack.names[0]}:B"
