"""Places in memory for adapters that come and go, ready for one product over many of them.

Adapters that change the same modules with the same ranks lie in one shelf: their matrices
are stacked, so the tokens of several adapters go through one batched product, and each
takes its own bytes and no more (a shelf has at most a fifth of its places to spare).

    shelf     A of a group of maps (places, in, r)     B of a map (places, r, out)

Maps that read the same input (q, k, v; gate, up) form a group; their A's lie together. The
factor alpha / r is in B. A lies with its input first: MKL's product then sums every token of
two or more in the same order, however many there are.

Shapes: I in, O out, r rank of one map, R ranks of a group together, K places.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from laura.errors import AdapterError
from laura.models.adapter_files import PREFIX
from laura.models.lora import LoraSettings

# torch computes a product of fewer multiplications in a loop of its own, and MKL one of a
# single token in another order than of several. Both differ in the last bit.
FEWEST_MULTIPLICATIONS, FEWEST_TOKENS = 400, 2


@dataclass(frozen=True)
class MapGroup:
    """Linear maps that read the same input.

    Attributes:
        names: Full module names, in the order of their outputs.
        inputs: Width of the input.
        outputs: Width of every output.
    """

    names: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Factors:
    """Matrices of K neighbouring places for one group of maps; views into the stacks.

    Attributes:
        down_KIR: A of all maps that are changed.
        maps: Which maps of the group these are.
        ranks: Rank of each.
        ups: B of each, (K, r, O).
    """

    down_KIR: Tensor
    maps: list[int]
    ranks: list[int]
    ups: list[Tensor]


@dataclass(eq=False)
class Slot:
    """An adapter in memory.

    Attributes:
        name: Its name.
        digest: What its bytes are; another digest is another adapter.
        shelf: Where it lies.
        place: Which place of the shelf; changes when the shelf is packed anew.
        pinned: Whether it stays though it is not used.
        uses: Answers in work that go through it.
        seen: Number of its last use; the lowest leaves first.
    """

    name: str
    digest: str
    shelf: Shelf
    place: int
    pinned: bool = False
    uses: int = 0
    seen: int = 0

    @property
    def bytes(self) -> int:
        """Memory of its matrices."""
        return self.shelf.place_bytes

    @property
    def where(self) -> tuple[object, ...]:
        """Its place among all shelves; of two that are there, no two are equal."""
        return id(self.shelf), self.place


@dataclass(eq=False)
class Shelf:
    """Adapters of the same modules and ranks, stacked.

    Attributes:
        ranks: Rank of every module that they change.
        places: Who lies where; at most a fifth of them is None.
        down: A of every group that is changed, by the name of its first map.
        up: B of every module that is changed.
        views: What was looked up by `factors` in the passes of one plan.
    """

    ranks: dict[str, int]
    shapes: dict[str, tuple[int, int]]
    ups: dict[str, tuple[int, int]]
    dtype: torch.dtype
    device: torch.device
    places: list[Slot | None] = field(default_factory=list)
    down: dict[str, Tensor] = field(default_factory=dict)
    up: dict[str, Tensor] = field(default_factory=dict)
    views: dict[tuple[str, int, int], Factors | None] = field(default_factory=dict)

    @cached_property
    def fewest_tokens(self) -> int:
        """Tokens of each slot from which on a token's result is the same whatever their number."""
        smallest = min(rank * out for rank, out in self.ups.values())
        return max(FEWEST_TOKENS, -(-FEWEST_MULTIPLICATIONS // smallest))

    @property
    def place_bytes(self) -> int:
        """Memory of one adapter."""
        shapes = [*self.shapes.values(), *self.ups.values()]
        return sum(rows * columns for rows, columns in shapes) * self.dtype.itemsize

    def factors(self, group: MapGroup, first: int, count: int) -> Factors | None:
        """Matrices of `count` neighbours for a group of maps; None where they do not change it."""
        key = group.names[0], first, count
        if key not in self.views:
            places, down = slice(first, first + count), self.down.get(group.names[0])
            maps = [number for number, name in enumerate(group.names) if name in self.up]
            ups = [self.up[group.names[number]][places] for number in maps]
            ranks = [up.shape[1] for up in ups]
            self.views[key] = None if down is None else Factors(down[places], maps, ranks, ups)
        return self.views[key]

    def pack(self, wanted: int) -> None:
        """Have room for `wanted` adapters and a few more; those that are there stay."""
        held = [slot for slot in self.places if slot is not None]
        old = [slot.place for slot in held]
        size = wanted + wanted // 5
        self.views.clear()  # they would keep the stacks of before
        for stack, shapes in ((self.down, self.shapes), (self.up, self.ups)):
            for name, shape in shapes.items():
                # One matrix after another: the shelf is never held twice.
                fresh = torch.zeros(size, *shape, dtype=self.dtype, device=self.device)
                for place, before in enumerate(old):
                    fresh[place] = stack[name][before]
                stack[name] = fresh
        self.places = [*held, *[None] * (size - len(held))]
        for place, slot in enumerate(held):
            slot.place = place


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
        groups: Sequence[MapGroup],
        most: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups, self.most, self.max_rank = groups, most, max_rank
        self.dtype, self.device = dtype, device
        self.held: dict[str, Slot] = {}
        self._shapes = {
            name: (group.inputs, out)
            for group in groups
            for name, out in zip(group.names, group.outputs, strict=True)
        }
        self._shelves: dict[tuple[tuple[str, int], ...], Shelf] = {}
        self._clock = itertools.count(1)

    @property
    def bytes(self) -> int:
        """Memory of all shelves."""
        return sum(len(shelf.places) * shelf.place_bytes for shelf in self._shelves.values())

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
        shelf = self._shelves.get(key)
        place = None
        if leaver is not None:
            place = leaver.place if leaver.shelf is shelf else None
            self._take_out(leaver, pack=place is None)
        if shelf is None:
            shelf = self._shelves[key] = self._shelf(ranks)
        if None not in shelf.places:
            shelf.pack(len(shelf.places) + 1)
        place = shelf.places.index(None)
        slot = Slot(name, digest, shelf, place, seen=next(self._clock))
        self._fill(slot, settings, tensors)
        shelf.places[place] = self.held[name] = slot
        return slot

    def remove(self, name: str) -> bool:
        """Free an adapter's place unless it is in use; whether it had one."""
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
        for module in settings.targets:
            if module not in self._shapes:
                raise AdapterError(
                    f"adapter {name} was made for another base: it changes {module}, "
                    "which this one does not have"
                )
            rank = settings.for_module(module)[0]
            if not 1 <= rank <= self.max_rank:
                raise AdapterError(
                    f"adapter {name} has rank {rank} at {module}; allowed are 1 to {self.max_rank}"
                )
            inputs, outputs = self._shapes[module]
            for letter, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                tensor = tensors.get(f"{PREFIX}{module}.lora_{letter}.weight")
                if tensor is None or tuple(tensor.shape) != shape:
                    found = "none" if tensor is None else tuple(tensor.shape)
                    raise AdapterError(
                        f"adapter {name}: lora_{letter} of {module} has shape {found}, "
                        f"this base needs {shape}"
                    )
                if not bool(torch.isfinite(tensor).all()):
                    raise AdapterError(f"adapter {name}: lora_{letter} of {module} is not finite")

    def _oldest(self) -> Slot | None:
        free = [slot for slot in self.held.values() if not slot.pinned and not slot.uses]
        return min(free, key=lambda slot: slot.seen, default=None)

    def _take_out(self, slot: Slot, pack: bool = True) -> None:
        shelf = slot.shelf
        shelf.places[slot.place] = None
        del self.held[slot.name]
        left = sum(one is not None for one in shelf.places)
        if not left and pack:
            self._shelves = {k: one for k, one in self._shelves.items() if one is not shelf}
        elif pack and len(shelf.places) > left + left // 5:
            shelf.pack(left)

    def _shelf(self, ranks: dict[str, int]) -> Shelf:
        downs, ups = {}, {}
        for group in self.groups:
            total = sum(ranks.get(name, 0) for name in group.names)
            if total:
                downs[group.names[0]] = (group.inputs, total)
            for name, out in zip(group.names, group.outputs, strict=True):
                if name in ranks:
                    ups[name] = (ranks[name], out)
        return Shelf(ranks, downs, ups, self.dtype, self.device)

    @torch.no_grad()
    def _fill(self, slot: Slot, settings: LoraSettings, tensors: Mapping[str, Tensor]) -> None:
        shelf = slot.shelf
        for group in self.groups:
            start = 0
            for name in group.names:
                if name not in shelf.ranks:
                    continue
                rank, scale = settings.for_module(name)
                a_RI, b_OR = (tensors[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB")
                shelf.down[group.names[0]][slot.place, :, start : start + rank] = a_RI.T
                shelf.up[name][slot.place] = b_OR.float().T * scale
                start += rank
