"""The KV cache, rows for sequences that come and go, of very different length; prefix cache.

    128 tokens a row    [block: 32 rows] [block ...]
    256 tokens a row    [block: 16 rows] ...
    ...                 each kind of block holds rows twice as long as the one before

A sequence takes a row of the shortest kind that holds all it may become, so a short one
neither reads nor reserves what a long one needs. Blocks are made when they are wanted and
given up, when empty, for the sake of another kind; the sum of all stays within a budget.

Within a block the rows that are decoded stand first, then those whose prompt is still being
read: a step reads one slice. Behind its tokens a row is zero, always: a masked place still
meets a weight of zero, and what a broken adapter left there (nan) would spread.

The prefix cache holds keys and values of what prompts begin with, for the next prompt. It
has a tree for every owner: each node holds up to `CHUNK` tokens that follow its parent's. What
two owners begin with in common is kept twice, so the time an answer takes tells nobody what
others have asked. When memory is short the end that was used least recently leaves first.

Shapes: G key/value heads, L tokens of a row (of a node: layers), T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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


CHUNK = 64


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    parent: _Node | None
    pairs: Tensor | None = None  # (L, G, 2, T, D)
    children: dict[int, list[_Node]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return 0 if self.pairs is None else self.pairs.numel() * self.pairs.element_size()


class PrefixCache:
    """Prefixes of prompts, by owner.

    Args:
        budget_bytes: Most memory; 0 keeps nothing.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes, self.bytes = budget_bytes, 0
        self._roots: dict[Hashable, _Node] = {}
        # In the order of their last use; a parent is used after its children.
        self._nodes: dict[_Node, Hashable] = {}

    def fill(self, owner: Hashable, tokens: Sequence[int], row: CacheRow) -> int:
        """Copy the longest kept prefix of `tokens` into an empty row; its length."""
        found = self._longest(owner, tuple(tokens))
        start = 0
        for node, count in found:
            assert node.pairs is not None
            span = slice(start, start + count)
            row.block.pairs[:, row.index, :, :, span] = node.pairs[:, :, :, :count]
            start += count
        row.tokens = start
        self._touch([node for node, _ in found])
        return start

    def length(self, owner: Hashable, tokens: Sequence[int]) -> int:
        """How much of the beginning of `tokens` is kept."""
        return sum(count for _, count in self._longest(owner, tuple(tokens)))

    def keep(self, owner: Hashable, tokens: Sequence[int], row: CacheRow) -> None:
        """Keep what a row holds of `tokens`, its first ones."""
        tokens = tuple(tokens[: row.tokens])
        if not self.budget_bytes or not tokens:
            return
        node = self._roots.setdefault(owner, _Node((), None))
        start, path = 0, list[_Node]()
        while start < len(tokens):
            chunk = tokens[start : start + CHUNK]
            near = node.children.get(chunk[0], [])
            same = next((c for c in near if c.tokens[: len(chunk)] == chunk), None)
            if same is None:
                same = self._add(owner, node, chunk, row, start, near)
            node = same
            path.append(node)
            start += CHUNK
        self._touch(path)
        self._shrink()

    def _longest(self, owner: Hashable, tokens: tuple[int, ...]) -> list[tuple[_Node, int]]:
        """The nodes that `tokens` begin with, each with how many of its tokens."""
        found: list[tuple[_Node, int]] = []
        node, start = self._roots.get(owner), 0
        while node is not None and start < len(tokens):
            rest = tokens[start : start + CHUNK]
            best, most = None, 0
            for child in node.children.get(rest[0], []):
                count = common_length(child.tokens, rest)
                if count > most:
                    best, most = child, count
            if best is None:
                break
            found.append((best, most))
            start += most
            node = best if most == CHUNK else None
        return found

    def _add(
        self,
        owner: Hashable,
        parent: _Node,
        chunk: tuple[int, ...],
        row: CacheRow,
        start: int,
        near: Sequence[_Node],
    ) -> _Node:
        held = row.block.pairs[:, row.index, :, :, start : start + len(chunk)]
        node = _Node(chunk, parent, held.clone(memory_format=torch.contiguous_format))
        covered = [c for c in near if not c.children and chunk[: len(c.tokens)] == c.tokens]
        parent.children.setdefault(chunk[0], []).append(node)
        self._nodes[node] = owner
        self.bytes += node.bytes
        for shorter in covered:
            # It was the end of a shorter text; the new one holds all of it.
            self._drop(shorter)
        return node

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._nodes[node] = self._nodes.pop(node)

    def _shrink(self) -> None:
        while self.bytes > self.budget_bytes and self._nodes:
            # A parent is always used later than its children, so the first is an end.
            self._drop(next(iter(self._nodes)))

    def _drop(self, node: _Node) -> None:
        owner = self._nodes.pop(node)
        self.bytes -= node.bytes
        assert node.parent is not None and not node.children
        near = node.parent.children[node.tokens[0]]
        near.remove(node)
        if not near:
            del node.parent.children[node.tokens[0]]
        root = self._roots[owner]
        if not root.children:
            del self._roots[owner]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    most = min(len(one), len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)
