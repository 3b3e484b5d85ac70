"""LoRA slots: memory for adapters that come and go, and the products of a pass over many of them.

Adapters that change the same modules with the same ranks lie in one array: their matrices
are stacked, so the tokens of several adapters go through one batched product, and each
takes its own bytes and no more (an array has at most a fifth of its slots to spare).

    array     A of a group of maps (slots, in, ranks)     B of a stack (slots, maps, rank, out)

Maps that read the same input (q, k, v; gate, up) form a group; their A's lie together.
Neighbours among them with the same rank and width form a stack (k, v; gate, up). The factor
alpha / r is in B.

A LoRA batch says which tokens of a pass go through which adapters, and by which way. Several
tokens of a slot go through one product; slots that are neighbours in an array and have equally
many, one slot's tokens behind another's, through a batched one (`aligned`). Few tokens are
looked up on a processor. Elsewhere they are gathered and filled up to the same number, so that
neighbouring slots go through one batched product (`padded`).

A processor's batched products of one or two tokens with each adapter read the matrices at
half of the memory's speed. A sum of a table's rows, weighted, as `embedding_bag` makes it for
embeddings, is the same product, read at full speed:

    A x = sum of A's rows, weighted by x        B (A x) = sum of B's rows, weighted by A x

Tokens need not be sorted, gathered or filled up, and each one's sum is its own: its bits do
not depend on its neighbours. Neighbours of one slot still share what a processor's cache
holds. That is why A lies with its input first: its rows are what a lookup sums, and MKL's
product of several tokens sums each in the same order, however many there are.

OFT changes what a map reads, of each map by a rotation of its own: a token of such a slot goes
through the group's product once for every map of it, and the map's columns are taken. Its
rotations, R - I of all maps of a group (oft.py), lie in an array of the same modules and block
size, (slots, blocks, b, maps * b), and go through the same two ways: x (R - I) is a lookup too.

Shapes: T tokens, I in, O out and r rank of one map, R ranks of a group together, K slots, m maps
of a stack, N rows of a table that a token sums, M sums of a token or tokens of each slot, P tokens
of all padded runs, filling included, o width of a stack's maps, n blocks and b their size (OFT).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from laura.models.adapter_files import PREFIX, check_fit, peak
from laura.models.device import looks_up_adapters
from laura.models.lora import LoraSettings
from laura.models.oft import OFT_TURN
from laura.results.errors import AdapterError

# torch computes a product of fewer multiplications in a loop of its own, whose last bit may be
# another than that of MKL's; that one is the same for every number of tokens from eight on.
FEWEST_MULTIPLICATIONS, FEWEST_TOKENS = 400, 8
# Parts of prompts and single tokens are not filled up to one another from here on.
MANY_TOKENS = 8
# Up to so many filled-up rows cost less than a product more: it is the adapters' matrices
# that must be read, not the tokens.
FREE_ROWS = 64
# Slots of an array that nobody uses and that are computed all the same, between two that are.
MOST_IDLE = 2
# Aligned runs more than padded ones that are still faster: gathering costs about so many.
MORE_ALIGNED = 2


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
        stacks: The stacks of every group that is changed, by the name of its first map; none
            where inputs are rotated.
        shapes: Of one slot: A of every such group, by that name, and B of every stack, by the
            name of its first map and ":B"; or the rotations of every such group.
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
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> SlotArray:
        """An empty one, for adapters that change these modules with these ranks or blocks."""
        stacks: dict[str, list[Stack]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for group in groups:
            found = stacks_of(group, ranks)
            if not found:
                continue
            if b := block_size:
                shapes[group.names[0]] = (group.inputs // b, b, len(group.names) * b)
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
        self._arrays: dict[tuple[object, ...], SlotArray] = {}
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
            tensors: Its weights, by their names in the file, `oft.with_turns`.

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
        key = (settings.block_size, *sorted(ranks.items()))
        leaver = self.held.get(name) or (self._oldest() if len(self.held) >= self.most else None)
        array = self._arrays.get(key)
        if leaver is not None:
            self._take_out(leaver, pack=leaver.array is not array)
        if array is None:
            array = self._arrays[key] = SlotArray.of(
                self.groups, ranks, settings.block_size, self.dtype, self.device
            )
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
                "merge it into a base of its own, or train plain LoRA"
            )
        label = Path(f"adapter {name}")
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        check_fit(settings, shapes, self._linears, label)
        for module in settings.targets:
            rank = settings.block_size or settings.for_module(module)[0]
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
        if settings.block_size:
            self._fill_rotations(slot, settings.targets, tensors)
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

    def _fill_rotations(
        self, slot: Slot, targets: Collection[str], tensors: Mapping[str, Tensor]
    ) -> None:
        for group in self.groups:
            for place, name in enumerate(group.names):
                if name in targets:  # the others stay at zero, which rotates nothing
                    turns_nbM = slot.array.tensors[group.names[0]][slot.index]
                    turns_nbmb = turns_nbM.unflatten(2, (len(group.names), -1))
                    turns_nbmb[:, :, place].copy_(tensors[f"{PREFIX}{name}.{OFT_TURN}"])


def up_key(stack: Stack) -> str:
    """Where an array keeps B of a stack."""
    return f"{stack.names[0]}:B"


@dataclass
class Lookup:
    """Tokens of a pass whose slots are in one array.

    Attributes:
        array: Which.
        tokens: Where they stand in the pass.
        indices_T: Each one's slot in the array.
    """

    array: SlotArray
    tokens: slice
    indices_T: Tensor
    _rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, group: LinearGroup, x_TI: Tensor, y_TO: Tensor) -> None:
        """Add B (A x) of these tokens of the pass to y, for the maps of a group."""
        factors = self.array.factors(group, 0, len(self.array.slots))
        if factors is None:
            return
        inner_TR = self._sums(factors.down_KIR.flatten(0, 1), x_TI[self.tokens], 1)
        for stack, up_KmrO in factors.ups:
            maps = len(stack.names)
            found = self._sums(up_KmrO.flatten(0, 2), inner_TR[:, stack.ranks], maps)
            y_TO[self.tokens, stack.columns] += found.view(len(inner_TR), -1)

    def turned(self, group: LinearGroup, x_TI: Tensor) -> Tensor | None:
        """What each map of a group reads of these tokens, (T, m, I); None where it reads x."""
        turns_KnbM = self.array.tensors.get(group.names[0])
        if turns_KnbM is None:
            return None
        x_TI = x_TI[self.tokens]
        found = self._sums(turns_KnbM.flatten(0, 2), x_TI, turns_KnbM.shape[1])
        return _added(x_TI, found.unflatten(0, (len(x_TI), -1)), group)

    def _sums(self, table: Tensor, weights_TN: Tensor, sums: int) -> Tensor:
        """Sums (T * M, width) of the rows of every token's slot, by the token's weights."""
        rows, starts = self._rows_of(weights_TN.shape[1], sums)
        found: Tensor = functional.embedding_bag(
            rows, table, starts, mode="sum", per_sample_weights=weights_TN.reshape(-1)
        )
        return found

    def _rows_of(self, count: int, sums: int) -> tuple[Tensor, Tensor]:
        """Which rows every token sums, N of its slot, and where each of its M sums begins."""
        if (count, sums) not in self._rows:
            each = torch.arange(count, device=self.indices_T.device)
            rows = (self.indices_T[:, None] * count + each).flatten()
            starts = torch.arange(0, len(rows), count // sums, device=rows.device)
            self._rows[count, sums] = rows.int(), starts.int()
        return self._rows[count, sums]


@dataclass
class SlotRun:
    """Neighbouring slots of a array, each with as many tokens.

    Attributes:
        array: Where they lie.
        first: Index of the first.
        count: How many.
        each: Tokens of each.
        start: Where their tokens stand: in the pass, or among what is gathered.
    """

    array: SlotArray
    first: int
    count: int
    each: int
    start: int

    @property
    def tokens(self) -> slice:
        """Their tokens, one slot's after another's."""
        return slice(self.start, self.start + self.count * self.each)

    def add(self, group: LinearGroup, x_PI: Tensor, y_PO: Tensor) -> None:
        """Add B (A x) of these tokens, which are all that x and y hold, to y."""
        factors = self.array.factors(group, self.first, self.count)
        if factors is None:
            return
        inner_KMR = torch.bmm(x_PI.unflatten(0, (self.count, self.each)), factors.down_KIR)
        for stack, up_KmrO in factors.ups:
            inner_KMmr = inner_KMR[:, :, stack.ranks].unflatten(2, (-1, stack.rank))
            inner = inner_KMmr.transpose(1, 2).flatten(0, 1)
            found = torch.bmm(inner, up_KmrO.flatten(0, 1)).unflatten(0, (self.count, -1))
            y_KMmo = y_PO[:, stack.columns].view(self.count, self.each, -1, stack.out)
            # Not baddbmm: into columns of a wider matrix it goes slot by slot.
            y_KMmo.add_(found.transpose(1, 2))

    def turned(self, group: LinearGroup, x_TI: Tensor) -> Tensor | None:
        """See `Lookup.turned`."""
        turns_KnbM = self.array.tensors.get(group.names[0])
        if turns_KnbM is None:
            return None
        turns_KnbM = turns_KnbM[self.first : self.first + self.count]
        x_PI = x_TI[self.tokens]
        x_KnMb = x_PI.view(self.count, self.each, *turns_KnbM.shape[1:3]).transpose(1, 2)
        found = torch.bmm(x_KnMb.flatten(0, 1), turns_KnbM.flatten(0, 1))
        found_KMnM = found.unflatten(0, (self.count, -1)).transpose(1, 2)
        return _added(x_PI, found_KMnM.flatten(0, 1), group)


def _added(x_TI: Tensor, found_TnM: Tensor, group: LinearGroup) -> Tensor:
    """x and what a rotation adds to it for every map of a group, (T, m, I)."""
    found_Tmnb = found_TnM.unflatten(2, (len(group.names), -1)).transpose(1, 2)
    turned_TmI: Tensor = found_Tmnb.flatten(2) + x_TI[:, None]
    return turned_TmI


@dataclass
class LoraBatch:
    """Which tokens of a pass go through which adapters.

    Attributes:
        lookups: Tokens that are looked up.
        aligned: Runs whose tokens stand in the pass as the product wants them.
        padded: Runs whose tokens are gathered.
        gather: For these, one run after another: which token of the pass; (P,).
        back: For every token of the pass: which of the gathered it is; P for none.
        rotated: Tokens whose inputs are rotated instead.
    """

    lookups: list[Lookup] = field(default_factory=list)
    aligned: list[SlotRun] = field(default_factory=list)
    padded: list[SlotRun] = field(default_factory=list)
    gather: Tensor | None = None
    back: Tensor | None = None
    rotated: list[Lookup | SlotRun] = field(default_factory=list)

    def mapped(
        self, group: LinearGroup, x_TI: Tensor, product: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A group's product of every token of the pass, inputs rotated as its adapter has it.

        A token's row is what its first map reads; what the others read goes through behind all.
        """
        found = [(run.tokens, run.turned(group, x_TI)) for run in self.rotated]
        turned = [
            (tokens, read_TmI.unbind(1)) for tokens, read_TmI in found if read_TmI is not None
        ]
        rows_NI = torch.cat([x_TI, *(read_TI for _, reads in turned for read_TI in reads[1:])])
        for tokens, reads in turned:
            rows_NI[tokens] = reads[0]
        y_NO, row = product(rows_NI), len(x_TI)
        y_TO = y_NO[:row]
        for tokens, reads in turned:
            column = group.outputs[0]
            for read_TI, out in zip(reads[1:], group.outputs[1:], strict=True):
                end, columns = row + len(read_TI), slice(column, column + out)
                y_TO[tokens, columns] = y_NO[row:end, columns]
                row, column = end, column + out
        return y_TO

    def add(self, group: LinearGroup, x_TI: Tensor, y_TO: Tensor) -> None:
        """Add B (A x) of every token of the pass to y, for the maps of a group."""
        for lookup in self.lookups:
            lookup.add(group, x_TI, y_TO)
        for run in self.aligned:
            run.add(group, x_TI[run.tokens], y_TO[run.tokens])
        if self.gather is not None:
            assert self.back is not None
            x_PI = x_TI.index_select(0, self.gather)
            # The row behind the last is for tokens that are in none of these runs.
            sums_PO = y_TO.new_zeros(len(x_PI) + 1, y_TO.shape[1])
            for run in self.padded:
                run.add(group, x_PI[run.tokens], sums_PO[run.tokens])
            y_TO[: len(self.back)] += sums_PO.index_select(0, self.back)

    def forget(self) -> None:
        """Let go of what was looked up for it, so that it keeps no adapter in memory."""
        runs: list[Lookup | SlotRun] = [*self.lookups, *self.aligned, *self.padded]
        for run in runs:
            run.array.views.clear()


@dataclass
class CurrentBatch:
    """Where the batch of the coming pass stands, for all maps of a model."""

    batch: LoraBatch = field(default_factory=LoraBatch)
    _made_for: tuple[object, ...] = ()

    def prepare(self, segments: Sequence[tuple[Slot | None, int]], device: torch.device) -> None:
        """Plan the coming pass; while the same answers run, the last batch stays.

        Args:
            segments: (slot or None for the base, tokens) in the order of the pass.
            device: Where the model lives.
        """
        made_for = tuple((slot and slot.where, tokens) for slot, tokens in segments)
        if made_for != self._made_for:
            self.clear()
            self.batch, self._made_for = lora_batch_of(segments, device), made_for

    def clear(self) -> None:
        """Forget the batch, so that it keeps no adapter in memory."""
        self.batch.forget()
        self.batch, self._made_for = LoraBatch(), ()


@dataclass
class _BatchEntry:
    """A slot's tokens in the pass."""

    slot: Slot
    tokens: list[int]

    @property
    def order(self) -> tuple[int, int]:
        return slot_order(self.slot)


def slot_order(slot: Slot | None) -> tuple[int, int]:
    """Tokens of a pass stand in this order, so that most runs are aligned; the base's first."""
    return (0, 0) if slot is None else (id(slot.array), slot.index)


def lora_batch_of(segments: Sequence[tuple[Slot | None, int]], device: torch.device) -> LoraBatch:
    """The LoRA batch of a pass.

    Args:
        segments: (slot or None for the base, tokens) in the order of the pass.
        device: Where the model lives.
    """
    entries, start = [], 0
    for slot, tokens in segments:
        if slot is not None:
            entries.append(_BatchEntry(slot, list(range(start, start + tokens))))
        start += tokens
    rotated = [entry for entry in entries if not entry.slot.array.stacks]
    entries = [entry for entry in entries if entry.slot.array.stacks]
    if looks_up_adapters(device):
        batch, others = _looked_up(entries, device), _looked_up(rotated, device)
        batch.rotated = [*others.lookups, *others.aligned]
    else:
        batch = _gathered(entries, start, device)
        batch.rotated = list(_aligned(rotated))
    return batch


def _looked_up(entries: Sequence[_BatchEntry], device: torch.device) -> LoraBatch:
    """Few tokens of a segment are looked up, more go through a product.

    It is the segment that decides, not what else goes through its slot: an answer in
    company owes its bits to the answer alone.
    """
    many, few = list[_BatchEntry](), list[_BatchEntry]()
    for entry in entries:
        (many if len(entry.tokens) >= entry.slot.array.fewest_tokens else few).append(entry)
    lookups = [_lookup(run, device) for run in _runs(few, _beside)]
    return LoraBatch(lookups, list(_aligned(many)))


def _runs(
    entries: Sequence[_BatchEntry], fits: Callable[[list[_BatchEntry], _BatchEntry], bool]
) -> list[list[_BatchEntry]]:
    """Neighbours together, as long as the next one fits those before it."""
    found: list[list[_BatchEntry]] = []
    for entry in entries:
        if not found or not fits(found[-1], entry):
            found.append([])
        found[-1].append(entry)
    return found


def _beside(run: Sequence[_BatchEntry], entry: _BatchEntry) -> bool:
    """Whether one lookup may serve them all."""
    last = run[-1]
    return last.slot.array is entry.slot.array and last.tokens[-1] + 1 == entry.tokens[0]


def _lookup(run: Sequence[_BatchEntry], device: torch.device) -> Lookup:
    indices = [entry.slot.index for entry in run for _ in entry.tokens]
    tokens = slice(run[0].tokens[0], run[-1].tokens[-1] + 1)
    return Lookup(run[0].slot.array, tokens, torch.tensor(indices, device=device))


def _gathered(segments: Sequence[_BatchEntry], total: int, device: torch.device) -> LoraBatch:
    """Few tokens of a slot are filled up to those of its neighbours where it pays."""
    few: dict[Slot, _BatchEntry] = {}
    many: dict[Slot, _BatchEntry] = {}
    for one in segments:
        kind = many if len(one.tokens) >= MANY_TOKENS else few
        kind.setdefault(one.slot, _BatchEntry(one.slot, [])).tokens.extend(one.tokens)
    batch = LoraBatch()
    gather: list[int] = []
    back: dict[int, int] = {}
    for kind, free in ((few, FREE_ROWS), (many, 0)):
        entries = sorted(kind.values(), key=lambda entry: entry.order)
        aligned = list(_aligned(entries))
        padded = _runs(entries, partial(_fits, free=free))
        if len(aligned) <= len(padded) + MORE_ALIGNED and all(map(_may_stay, entries)):
            batch.aligned += aligned
            continue
        for run in padded:
            batch.padded.append(_filled(run, gather, back))
    if gather:
        batch.gather = torch.tensor(gather, device=device)
        gathered = [back.get(token, len(gather)) for token in range(total)]
        batch.back = torch.tensor(gathered, device=device)
    return batch


def _may_stay(entry: _BatchEntry) -> bool:
    return entry.tokens[-1] - entry.tokens[0] + 1 == len(entry.tokens)


def _aligned(entries: Sequence[_BatchEntry]) -> Iterator[SlotRun]:
    """Runs of neighbours with equally many tokens, one slot's behind another's."""
    for run in _runs(entries, _goes_on):
        first = run[0]
        yield SlotRun(
            first.slot.array, first.slot.index, len(run), len(first.tokens), first.tokens[0]
        )


def _goes_on(run: Sequence[_BatchEntry], entry: _BatchEntry) -> bool:
    last = run[-1]
    return _beside(run, entry) and (last.slot.index + 1, len(last.tokens)) == (
        entry.slot.index,
        len(entry.tokens),
    )


def _fits(run: Sequence[_BatchEntry], entry: _BatchEntry, free: int) -> bool:
    """Whether it is worth filling all up to the longest of them."""
    last, first = run[-1].slot, run[0].slot
    if last.array is not entry.slot.array:
        return False
    if entry.slot.index - last.index - 1 > (MOST_IDLE if free else 0):
        return False
    longest = max(len(one.tokens) for one in (*run, entry))
    rows = (entry.slot.index - first.index + 1) * longest
    return rows <= 2 * sum(len(one.tokens) for one in (*run, entry)) + free


def _filled(run: Sequence[_BatchEntry], gather: list[int], back: dict[int, int]) -> SlotRun:
    """A padded run; its tokens are added to `gather`, and where they are to `back`."""
    first = run[0].slot
    each = max(len(entry.tokens) for entry in run)
    count = run[-1].slot.index - first.index + 1
    found = SlotRun(first.array, first.index, count, each, len(gather))
    rows = [run[0].tokens[0]] * (count * each)
    for entry in run:
        start = (entry.slot.index - first.index) * each
        rows[start : start + len(entry.tokens)] = entry.tokens
        back.update((token, found.start + start + i) for i, token in enumerate(entry.tokens))
    gather += rows
    return found
