"""The prefix cache: keys and values of what prompts begin with, kept for the next prompt.

A tree for every owner: each node holds up to `CHUNK` tokens that follow its parent's. What
two owners begin with in common is kept twice, so the time an answer takes tells nobody what
others have asked. When memory is short the end that was used least recently leaves first.

Shapes: L layers, G key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laura.engine.kv_cache import CacheRow

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
