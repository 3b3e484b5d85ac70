"""The KV cache: rows for sequences that come and go, of very different length.

    128 tokens a row    [block: 32 rows] [block ...]
    256 tokens a row    [block: 16 rows] ...
    ...                 each kind of block holds rows twice as long as the one before

A sequence takes a row of the shortest kind that holds all it may become, so a short one
neither reads nor reserves what a long one needs. Blocks are made when they are wanted and
given up, when empty, for the sake of another kind; the sum of all stays within a budget.

Within a block the rows that are decoded stand first, then those whose prompt is still being
read: a step reads one slice. Behind its tokens a row is zero, always: a masked place still
meets a weight of zero, and what a broken adapter left there (nan) would spread.

Shapes: G key/value heads, L tokens of a row, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SHORTEST_ROW = 128
# Rows of a block hold about so many tokens together.
BLOCK_TOKENS = 4096


@dataclass(frozen=True)
class Geometry:
    """Size of the model's keys and values.

    Attributes:
        layers: Layers with attention.
        heads: Key/value heads of one layer (G).
        width: Width of one head (D).
        dtype: Number format in which keys and values are kept.
    """

    layers: int
    heads: int
    width: int
    dtype: torch.dtype

    def row_bytes(self, tokens: int) -> int:
        """Bytes that keys and values of one row of `tokens` tokens take."""
        return 2 * self.layers * self.heads * self.width * tokens * self.dtype.itemsize


def geometry_of(config: Any, dtype: torch.dtype) -> Geometry:
    """Size of a model's keys and values, by its configuration, kept in `dtype`."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None)
    width = width or config.hidden_size // config.num_attention_heads
    return Geometry(config.num_hidden_layers, heads, width, dtype)


@dataclass(eq=False)
class CacheRow:
    """One sequence's keys and values.

    Attributes:
        block: Where it lies.
        index: Which row of the block; changes when others leave.
        tokens: Tokens whose keys and values it holds.
        prefix: The row of a prefix that several sequences share and that stands before this one.
    """

    block: Block
    index: int
    tokens: int = 0
    prefix: CacheRow | None = None

    @property
    def start(self) -> int:
        """Position of its first token."""
        return 0 if self.prefix is None else self.prefix.tokens


class Block:
    """Rows of one capacity; the first `running` of them are decoded, the others read.

    Attributes:
        pairs: (layers, rows, G, 2, L, D). A head's keys and values lie side by side: one step of
            an index writes both, and all heads of all rows are one batch of products.
    """

    def __init__(self, geometry: Geometry, rows: int, capacity: int, device: torch.device) -> None:
        shape = (geometry.layers, rows, geometry.heads, 2, capacity, geometry.width)
        self.pairs = torch.zeros(shape, dtype=geometry.dtype, device=device)
        self.capacity, self.most = capacity, rows
        self.bytes = rows * geometry.row_bytes(capacity)
        self.rows: list[CacheRow] = []
        self.running = 0

    def take(self) -> CacheRow:
        """A free row, to be read into."""
        row = CacheRow(self, len(self.rows))
        self.rows.append(row)
        return row

    def start(self, row: CacheRow) -> None:
        """Put a row among those that are decoded."""
        other = self.rows[self.running]
        if other is not row:
            kept = self.pairs[:, row.index, :, :, : row.tokens].clone()
            here, there = row.index, other.index
            self._clear(here, 0, row.tokens)
            self._move(other, here)
            self.pairs[:, there, :, :, : row.tokens] = kept
            row.index, self.rows[there] = there, row
        self.running += 1

    def cut(self, row: CacheRow, tokens: int) -> None:
        """Forget what a row holds behind so many tokens."""
        self._clear(row.index, tokens, row.tokens)
        row.tokens = tokens

    def free(self, row: CacheRow) -> None:
        """Give a row back; the last of its kind takes its place."""
        index = row.index
        self._clear(index, 0, row.tokens)
        if index < self.running:
            self.running -= 1
            if index != self.running:
                self._move(self.rows[self.running], index)
                index = self.running
        last = self.rows[-1]
        if index != len(self.rows) - 1:
            self._move(last, index)
        self.rows.pop()

    def _move(self, row: CacheRow, index: int) -> None:
        """Move a row to an index that is clear."""
        self.pairs[:, index, :, :, : row.tokens] = self.pairs[:, row.index, :, :, : row.tokens]
        self._clear(row.index, 0, row.tokens)
        row.index, self.rows[index] = index, row

    def _clear(self, index: int, start: int, end: int) -> None:
        self.pairs[:, index, :, :, start:end] = 0


class KVCache:
    """All rows there are.

    Args:
        geometry: Size of the model's keys and values.
        longest: Most tokens of one row.
        budget_bytes: Most memory of all blocks together.
        most_rows: Most rows in use at the same time.
        device: Where the model lives.

    Attributes:
        block_tokens: Tokens of a block's rows together, about.
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
        self.most_rows, self.device, self.block_tokens = most_rows, device, BLOCK_TOKENS
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

    def capacity(self, tokens: int) -> int:
        """Tokens of the row that so many take."""
        capacity = SHORTEST_ROW
        while capacity < tokens:
            capacity *= 2
        return min(capacity, self.longest)

    def can_ever_hold(self, tokens: int) -> bool:
        """Whether a row of so many tokens fits the budget at all."""
        if tokens > self.longest:
            return False
        return self.geometry.row_bytes(self.capacity(tokens)) <= self.budget_bytes

    def take(self, tokens: int) -> CacheRow | None:
        """A row for so many tokens; None while there is no room for it."""
        if self.rows >= self.most_rows:
            return None
        capacity = self.capacity(tokens)
        open_blocks = [
            block
            for block in self.blocks
            if block.capacity == capacity and len(block.rows) < block.most
        ]
        if open_blocks:
            return max(open_blocks, key=lambda block: len(block.rows)).take()
        return self._grow(capacity, max(1, self.block_tokens // capacity))

    def take_alone(self, tokens: int) -> CacheRow | None:
        """A row in a block of its own, no longer than its tokens: for a prefix that many share."""
        return self._grow(tokens, 1)

    def _grow(self, capacity: int, rows: int) -> CacheRow | None:
        one = self.geometry.row_bytes(capacity)
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
