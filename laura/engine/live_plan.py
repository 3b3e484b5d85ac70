"""Which tokens of a pass go through which adapters, and by which way.

Several tokens of a slot go through one product; slots that are neighbours in a shelf and
have equally many, one slot's tokens behind another's, through a batched one (`aligned`).
Few tokens are looked up on a processor (live_lookup.py). Elsewhere they are gathered and
filled up to the same number, so that neighbouring slots go through one batched product
(`padded`).

Shapes: P tokens of all padded runs, filling included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laura.engine.live_lookup import Lookup
from laura.models.device import looks_up_adapters
from laura.models.slots import Factors, MapGroup, Shelf, Slot

# Parts of prompts and single tokens are not filled up to one another from here on.
MANY_TOKENS = 8
# Up to so many filled-up rows cost less than a product more: it is the adapters' matrices
# that must be read, not the tokens.
FREE_ROWS = 64
# Places of a shelf that nobody uses and that are computed all the same, between two that are.
MOST_IDLE = 2
# Aligned runs more than padded ones that are still faster: gathering costs about so many.
MORE_ALIGNED = 2


@dataclass
class Batched:
    """Neighbouring slots of a shelf, each with as many tokens.

    Attributes:
        shelf: Where they lie.
        first: Place of the first.
        count: How many.
        each: Tokens of each.
        start: Where their tokens stand: in the pass, or among what is gathered.
    """

    shelf: Shelf
    first: int
    count: int
    each: int
    start: int

    def factors(self, group: MapGroup) -> Factors | None:
        """Their matrices for a group of maps; None where they do not change it."""
        return self.shelf.factors(group, self.first, self.count)

    @property
    def tokens(self) -> slice:
        """Their tokens, one slot's after another's."""
        return slice(self.start, self.start + self.count * self.each)


@dataclass
class Plan:
    """Which tokens of a pass go through which adapters.

    Attributes:
        lookups: Tokens that are looked up.
        aligned: Runs whose tokens stand in the pass as the product wants them.
        padded: Runs whose tokens are gathered.
        gather: For these, one run after another: which token of the pass; (P,).
        back: For every token of the pass: which of the gathered it is; P for none.
    """

    lookups: list[Lookup] = field(default_factory=list)
    aligned: list[Batched] = field(default_factory=list)
    padded: list[Batched] = field(default_factory=list)
    gather: Tensor | None = None
    back: Tensor | None = None

    def forget(self) -> None:
        """Let go of what was looked up for it, so that it keeps no adapter in memory."""
        runs: list[Lookup | Batched] = [*self.lookups, *self.aligned, *self.padded]
        for run in runs:
            run.shelf.views.clear()


@dataclass
class _Entry:
    """A slot's tokens in the pass."""

    slot: Slot
    tokens: list[int]

    @property
    def place(self) -> tuple[int, int]:
        return id(self.slot.shelf), self.slot.place


def slot_order(slot: Slot | None) -> tuple[int, int]:
    """Tokens of a pass stand in this order, so that most runs are aligned; the base's first."""
    return (0, 0) if slot is None else (id(slot.shelf), slot.place)


def plan_of(segments: Sequence[tuple[Slot | None, int]], device: torch.device) -> Plan:
    """The plan of a pass.

    Args:
        segments: (slot or None for the base, tokens) in the order of the pass.
        device: Where the model lives.
    """
    entries, start = [], 0
    for slot, tokens in segments:
        if slot is not None:
            entries.append(_Entry(slot, list(range(start, start + tokens))))
        start += tokens
    if looks_up_adapters(device):
        return _looked_up(entries, device)
    return _gathered(entries, start, device)


def _looked_up(entries: Sequence[_Entry], device: torch.device) -> Plan:
    """Few tokens of a segment are looked up, more go through a product.

    It is the segment that decides, not what else goes through its slot: an answer in
    company owes its bits to the answer alone.
    """
    many, few = list[_Entry](), list[_Entry]()
    for entry in entries:
        (many if len(entry.tokens) >= entry.slot.shelf.fewest_tokens else few).append(entry)
    plan = Plan(aligned=list(_aligned(many)))
    run: list[_Entry] = []
    for entry in few:
        if run and not _beside(run[-1], entry):
            plan.lookups.append(_lookup(run, device))
            run = []
        run.append(entry)
    if run:
        plan.lookups.append(_lookup(run, device))
    return plan


def _beside(one: _Entry, other: _Entry) -> bool:
    """Whether one lookup may serve both."""
    return one.slot.shelf is other.slot.shelf and one.tokens[-1] + 1 == other.tokens[0]


def _lookup(run: Sequence[_Entry], device: torch.device) -> Lookup:
    places = [entry.slot.place for entry in run for _ in entry.tokens]
    tokens = slice(run[0].tokens[0], run[-1].tokens[-1] + 1)
    return Lookup(run[0].slot.shelf, tokens, torch.tensor(places, device=device))


def _gathered(segments: Sequence[_Entry], total: int, device: torch.device) -> Plan:
    """Few tokens of a slot are filled up to those of its neighbours where it pays."""
    few: dict[Slot, _Entry] = {}
    many: dict[Slot, _Entry] = {}
    for one in segments:
        kind = many if len(one.tokens) >= MANY_TOKENS else few
        kind.setdefault(one.slot, _Entry(one.slot, [])).tokens.extend(one.tokens)
    plan = Plan()
    gather: list[int] = []
    back: dict[int, int] = {}
    for kind, free in ((few, FREE_ROWS), (many, 0)):
        entries = sorted(kind.values(), key=lambda entry: entry.place)
        aligned, padded = list(_aligned(entries)), list(_padded(entries, free))
        if len(aligned) <= len(padded) + MORE_ALIGNED and all(map(_may_stay, entries)):
            plan.aligned += aligned
            continue
        for run in padded:
            plan.padded.append(_filled(run, gather, back))
    if gather:
        plan.gather = torch.tensor(gather, device=device)
        places = [back.get(token, len(gather)) for token in range(total)]
        plan.back = torch.tensor(places, device=device)
    return plan


def _may_stay(entry: _Entry) -> bool:
    return entry.tokens[-1] - entry.tokens[0] + 1 == len(entry.tokens)


def _aligned(entries: Sequence[_Entry]) -> Iterator[Batched]:
    """Runs of neighbours with equally many tokens, one slot's behind another's."""
    run: Batched | None = None
    for entry in entries:
        slot, first, each = entry.slot, entry.tokens[0], len(entry.tokens)
        if (
            run is not None
            and (run.shelf, run.first + run.count) == (slot.shelf, slot.place)
            and (run.each, run.tokens.stop) == (each, first)
        ):
            run.count += 1
            continue
        if run is not None:
            yield run
        run = Batched(slot.shelf, slot.place, 1, each, first)
    if run is not None:
        yield run


def _padded(entries: Sequence[_Entry], free: int) -> Iterator[list[_Entry]]:
    """Runs of neighbours that are worth filling up to the longest of them."""
    run: list[_Entry] = []
    for entry in entries:
        if run and not _fits(run, entry, free):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _fits(run: Sequence[_Entry], entry: _Entry, free: int) -> bool:
    last, first = run[-1].slot, run[0].slot
    if last.shelf is not entry.slot.shelf:
        return False
    if entry.slot.place - last.place - 1 > (MOST_IDLE if free else 0):
        return False
    longest = max(len(one.tokens) for one in (*run, entry))
    rows = (entry.slot.place - first.place + 1) * longest
    return rows <= 2 * sum(len(one.tokens) for one in (*run, entry)) + free


def _filled(run: Sequence[_Entry], gather: list[int], back: dict[int, int]) -> Batched:
    """A padded run; its tokens are added to `gather`, and where they are to `back`."""
    first = run[0].slot
    each = max(len(entry.tokens) for entry in run)
    count = run[-1].slot.place - first.place + 1
    found = Batched(first.shelf, first.place, count, each, len(gather))
    rows = [run[0].tokens[0]] * (count * each)
    for entry in run:
        start = (entry.slot.place - first.place) * each
        rows[start : start + len(entry.tokens)] = entry.tokens
        back.update((token, found.start + start + i) for i, token in enumerate(entry.tokens))
    gather += rows
    return found
