"""The LoRA batch: which tokens of a pass go through which adapters, and by which way.

Several tokens of a slot go through one product; slots that are neighbours in an array and
have equally many, one slot's tokens behind another's, through a batched one (`aligned`).
Few tokens are looked up on a processor. Elsewhere they are gathered and filled up to the same
number, so that neighbouring slots go through one batched product (`padded`).

A processor's batched products of one or two tokens with each adapter read the matrices at
half of the memory's speed. A sum of a table's rows, weighted, as `embedding_bag` makes it for
embeddings, is the same product, read at full speed:

    A x = sum of A's rows, weighted by x        B (A x) = sum of B's rows, weighted by A x

Tokens need not be sorted, gathered or filled up, and each one's sum is its own: its bits do
not depend on its neighbours. Neighbours of one slot still share what a processor's cache
holds.

Shapes: T tokens, I in, O out and r rank of one map, R ranks of a group, K slots, m maps of
a stack, N rows of a table that a token sums, M sums of a token, P tokens of all padded runs,
filling included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from laura.engine.adapter_slots import Factors, LinearGroup, Slot, SlotArray
from laura.models.device import looks_up_adapters

# Parts of prompts and single tokens are not filled up to one another from here on.
MANY_TOKENS = 8
# Up to so many filled-up rows cost less than a product more: it is the adapters' matrices
# that must be read, not the tokens.
FREE_ROWS = 64
# Slots of an array that nobody uses and that are computed all the same, between two that are.
MOST_IDLE = 2
# Aligned runs more than padded ones that are still faster: gathering costs about so many.
MORE_ALIGNED = 2


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

    def factors(self, group: LinearGroup) -> Factors | None:
        """Their matrices for a group of maps; None where they do not change it."""
        return self.array.factors(group, self.first, self.count)

    @property
    def tokens(self) -> slice:
        """Their tokens, one slot's after another's."""
        return slice(self.start, self.start + self.count * self.each)


@dataclass
class LoraBatch:
    """Which tokens of a pass go through which adapters.

    Attributes:
        lookups: Tokens that are looked up.
        aligned: Runs whose tokens stand in the pass as the product wants them.
        padded: Runs whose tokens are gathered.
        gather: For these, one run after another: which token of the pass; (P,).
        back: For every token of the pass: which of the gathered it is; P for none.
    """

    lookups: list[Lookup] = field(default_factory=list)
    aligned: list[SlotRun] = field(default_factory=list)
    padded: list[SlotRun] = field(default_factory=list)
    gather: Tensor | None = None
    back: Tensor | None = None

    def forget(self) -> None:
        """Let go of what was looked up for it, so that it keeps no adapter in memory."""
        runs: list[Lookup | SlotRun] = [*self.lookups, *self.aligned, *self.padded]
        for run in runs:
            run.array.views.clear()


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
    if looks_up_adapters(device):
        return _looked_up(entries, device)
    return _gathered(entries, start, device)


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
