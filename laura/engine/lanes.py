"""Rows of keys and values for answers that come and go, of very different length.

    lane 128    [block: 32 rows of 128 tokens]  [block ...]
    lane 256    [block: 16 rows of 256 tokens]
    ...         each lane holds twice the tokens of the one before

An answer takes a row of the smallest lane that holds all it may become, so a short one
neither reads nor reserves what a long one needs. Blocks are made when they are wanted and
given up, when empty, for the sake of another lane; the sum of all stays within a budget.

Within a block the rows that are in work stand first, then those whose prompt is still being
read: a step reads one slice. Behind its tokens a row is zero, always: a masked place still
meets a weight of zero, and what a broken adapter left there (nan) would spread.

Shapes: G key/value heads, L tokens of a row, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laura.engine.key_values import Cache, Geometry

SHORTEST_ROW = 128
# Rows of a block hold about so many tokens together.
BLOCK_TOKENS = 4096


@dataclass(eq=False)
class Row:
    """One answer's place.

    Attributes:
        block: Where it lies.
        place: Which row of the block; changes when others leave.
        tokens: Tokens whose keys and values it holds.
    """

    block: Block
    place: int
    tokens: int = 0


class PairedCache(Cache):
    """A cache in which a head's keys and values lie side by side.

    One step of an index writes both, and all heads of all rows are one batch of products.

    Attributes:
        pairs: (layers, rows, G, 2, L, D); `keys` and `values` are parts of it.
    """

    def __init__(self, geometry: Geometry, rows: int, capacity: int, device: torch.device) -> None:
        shape = (geometry.layers, rows, geometry.heads, 2, capacity, geometry.width)
        self.pairs = torch.zeros(shape, dtype=geometry.dtype, device=device)
        self.keys, self.values = self.pairs.unbind(3)


class Block:
    """Rows of one capacity; the first `running` of them are in work, the others are read."""

    def __init__(self, geometry: Geometry, rows: int, capacity: int, device: torch.device) -> None:
        self.cache = PairedCache(geometry, rows, capacity, device)
        self.capacity, self.most = capacity, rows
        self.bytes = rows * geometry.row_bytes(capacity)
        self.rows: list[Row] = []
        self.running = 0

    def take(self) -> Row:
        """A free row, to be read into."""
        row = Row(self, len(self.rows))
        self.rows.append(row)
        return row

    def start(self, row: Row) -> None:
        """Put a row among those in work."""
        other = self.rows[self.running]
        if other is not row:
            kept = [part[:, row.place, :, : row.tokens].clone() for part in self._parts()]
            here, there = row.place, other.place
            self._clear(here, row.tokens)
            self._move(other, here)
            for part, own in zip(self._parts(), kept, strict=True):
                part[:, there, :, : row.tokens] = own
            row.place, self.rows[there] = there, row
        self.running += 1

    def cut(self, row: Row, tokens: int) -> None:
        """Forget what a row holds behind so many tokens."""
        for part in self._parts():
            part[:, row.place, :, tokens : row.tokens] = 0
        row.tokens = tokens

    def free(self, row: Row) -> None:
        """Give a row back; the last of its kind takes its place."""
        place = row.place
        self._clear(place, row.tokens)
        if place < self.running:
            self.running -= 1
            if place != self.running:
                self._move(self.rows[self.running], place)
                place = self.running
        last = self.rows[-1]
        if place != len(self.rows) - 1:
            self._move(last, place)
        self.rows.pop()

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.keys, self.cache.values

    def _move(self, row: Row, place: int) -> None:
        """Move a row to a place that is clear."""
        self.cache.copy(row.place, place, row.tokens)
        self._clear(row.place, row.tokens)
        row.place, self.rows[place] = place, row

    def _clear(self, place: int, tokens: int) -> None:
        for part in self._parts():
            part[:, place, :, :tokens] = 0


class Lanes:
    """All rows there are.

    Args:
        geometry: Size of the model's keys and values.
        longest: Most tokens of one row.
        budget_bytes: Most memory of all blocks together.
        most_rows: Most rows in use at the same time.
        device: Where the model lives.
    """

    def __init__(
        self,
        geometry: Geometry,
        longest: int,
        budget_bytes: int,
        most_rows: int,
        device: torch.device,
    ) -> None:
        self.geometry, self.longest, self.budget_bytes = geometry, longest, budget_bytes
        self.most_rows, self.device = most_rows, device
        self.blocks: list[Block] = []

    @property
    def bytes(self) -> int:
        """Memory of all blocks."""
        return sum(block.bytes for block in self.blocks)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return sum(len(block.rows) for block in self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens that all rows hold."""
        return sum(row.tokens for block in self.blocks for row in block.rows)

    def can_ever_hold(self, tokens: int) -> bool:
        """Whether a row of so many tokens fits the budget at all."""
        if tokens > self.longest:
            return False
        return self.geometry.row_bytes(self._capacity(tokens)) <= self.budget_bytes

    def take(self, tokens: int) -> Row | None:
        """A row for so many tokens; None while there is no room for it."""
        if self.rows >= self.most_rows:
            return None
        capacity = self._capacity(tokens)
        open_blocks = [
            block
            for block in self.blocks
            if block.capacity == capacity and len(block.rows) < block.most
        ]
        if open_blocks:
            return max(open_blocks, key=lambda block: len(block.rows)).take()
        return self._grow(capacity)

    def _grow(self, capacity: int) -> Row | None:
        one = self.geometry.row_bytes(capacity)
        rows = max(1, BLOCK_TOKENS // capacity)
        self._give_up(rows * one)
        rows = min(rows, (self.budget_bytes - self.bytes) // one)
        if not rows:
            return None
        block = Block(self.geometry, rows, capacity, self.device)
        self.blocks.append(block)
        return block.take()

    def _give_up(self, wanted_bytes: int) -> None:
        """Give up empty blocks until so much memory is free, as far as there are any."""
        for block in [block for block in self.blocks if not block.rows]:
            if self.bytes + wanted_bytes <= self.budget_bytes:
                return
            self.blocks.remove(block)

    def _capacity(self, tokens: int) -> int:
        capacity = SHORTEST_ROW
        while capacity < tokens:
            capacity *= 2
        return min(capacity, self.longest)
