"""The KV cache: rows for sequences that come and go, attention over them, and the prefix cache.

    128 tokens a row    [block: 32 rows] [block ...]
    256 tokens a row    [block: 16 rows] ...
    ...                 each kind of block holds rows twice as long as the one before

A sequence takes a row of the shortest kind that holds all it may become, so a short one
neither reads nor reserves what a long one needs. Blocks are made when they are wanted and
given up, when empty, for the sake of another kind; the sum of all stays within a budget.

Within a block the rows that are decoded stand first, then those whose prompt is still being
read: a step reads one slice. Behind its tokens a row is zero, always: a masked place still
meets a weight of zero, and what a broken adapter left there (nan) would spread.

A pass extends every sequence that is decoded, and reads parts of prompts:

    [a sequence's newest token, its draft | another's | ... | part of a prompt | ...]

All tokens stand in one row of the model's, so that weights are read once for all of them. A part
of a prompt attends to what its row already holds of the same prompt and to itself, a drafted
token to its row and the draft before it, each as if it came alone in a step of its own.
What stands before several rows (`CacheRow.prefix`) is read once for all of them.

The prefix cache holds keys and values of what prompts begin with, for the next prompt. It
has a tree for every owner: each node holds up to `CHUNK` tokens that follow its parent's. What
two owners begin with in common is kept twice, so the time an answer takes tells nobody what
others have asked. When memory is short the end that was used least recently leaves first.

Shapes: T tokens of the pass (of a node: its own), N rows, P drafted tokens of one, H heads,
G key/value heads, S = 2 G (keys, then values), R = H / G, L tokens of a row, or of the longest that
is read (of a node: layers), D head width, B parts read together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laura.models.attention import Scoring, grouped_attention

SHORTEST_ROW = 128
# Rows of a block hold about so many tokens together.
BLOCK_TOKENS = 4096
# Rows are read up to whole pieces: sums are then taken in the same order whatever the
# neighbours' lengths are, since all that is added is zeros. Products split longer sums.
SHORT_ROW, SHORT_PIECE, LONG_PIECE = 256, 16, 512


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


class BatchAttention:
    """Attention of the pass.

    Transformers' modules call `attend` when it is handed to them as `decode=` (see
    attention.py), the plain decoder calls `attended`.

    Args:
        running: (row, drafted tokens) of all rows that are decoded, in the pass's order.
        parts: (row, tokens) of the prompts read on, behind these.
        device: Where the model lives.
    """

    def __init__(
        self,
        running: Sequence[tuple[CacheRow, int]],
        parts: Sequence[tuple[CacheRow, int]],
        device: torch.device,
    ) -> None:
        where: dict[CacheRow, int] = {}
        self.count = 0
        for row, drafted in running:
            where[row] = self.count
            self.count += 1 + drafted
        self.steps: list[_NextTokens | _Draft] = []
        orders: list[list[int]] = []
        for block in dict.fromkeys(row.block for row, _ in running):
            self.steps.append(_NextTokens(block, device))
            orders.append([where[row] for row in block.rows[: block.running]])
        for row, drafted in running:
            if drafted:
                self.steps.append(_Draft(row, drafted, device))
                orders.append(list(range(where[row] + 1, where[row] + 1 + drafted)))
        self.orders = [
            slice(order[0], order[-1] + 1)
            if order == list(range(order[0], order[-1] + 1))
            else torch.tensor(order, device=device)
            for order in orders
        ]
        joined = [place for order in orders for place in order]
        self.back: Tensor | None = None
        if joined != list(range(self.count)):
            self.back = torch.tensor(joined, device=device).argsort()
        tokens = [row for row, drafted in running for _ in range(1 + drafted)]
        self.prefixes = _prefixes(tokens, device)
        # Places of the tokens, for layers with a window; of no use where no prefix is shared.
        self.positions: Tensor | None = None
        if self.prefixes:
            at = [row.start + row.tokens + k for row, more in running for k in range(1 + more)]
            self.positions = torch.tensor(at, device=device)
        self.parts = [_PromptPart(rows, tokens, device) for rows, tokens in _together(parts)]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scoring
    ) -> Tensor:
        """Attention (1, T, H, D) of the pass in one layer."""
        both_TSD = torch.cat((key, value), dim=1)[0].transpose(0, 1)
        found = self.attended(layer, query[0].transpose(0, 1), both_TSD, scores)
        return found.view(1, len(found), *query.shape[1::2])

    def attended(self, layer: int, query_THD: Tensor, both_TSD: Tensor, scores: Scoring) -> Tensor:
        """Write keys and values of one layer; attention (T, H * D) of the pass."""
        outputs, start = [], self.count
        if self.steps:
            outputs.append(self._decoded(layer, query_THD[:start], both_TSD[:start], scores))
        for part in self.parts:
            places = slice(start, start + part.total)
            start += part.total
            outputs.append(part.attend(layer, query_THD[places], both_TSD[places], scores))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _decoded(self, layer: int, query_NHD: Tensor, both_NSD: Tensor, scores: Scoring) -> Tensor:
        """Attention (N, H * D) of the tokens that are decoded, over rows and shared prefixes."""
        # Heads that share keys become queries of one head: nothing is repeated.
        query = query_NHD.unflatten(1, (both_NSD.shape[1] // 2, -1))
        outputs, weights = [], []
        for step, order in zip(self.steps, self.orders, strict=True):
            pairs_NG2LD = step.write(layer, both_NSD[order])
            own, (keys, values) = query[order], pairs_NG2LD.unbind(2)
            mask = _within(step.mask_N11L, step.places_N, scores.window)
            if self.prefixes:
                output, weight = partial_attention(own, keys, values, scores, mask)
                weights.append(weight)
            else:
                mask = mask.expand(-1, -1, own.shape[2], -1)
                output = grouped_attention(own, keys, values, mask, scores)
            outputs.append(output)
        output = self._in_order(outputs)
        if self.prefixes:
            weight = self._in_order(weights)
            for prefix, places in self.prefixes:
                key, value = _held(prefix, layer).unbind(1)
                near: Tensor | None = None
                if scores.window is not None and self.positions is not None:
                    whole = query.new_zeros(1, 1, 1, prefix.tokens)
                    near = _within(whole, self.positions[places], scores.window)
                found = prefix_attention(query[places], key, value, scores, near)
                output[places] = joined_attention(output[places], weight[places], *found)
        return output.to(query.dtype).reshape(self.count, -1)

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined if self.back is None else joined.index_select(0, self.back)


class _NextTokens:
    """One more token for the rows of one block that are decoded."""

    def __init__(self, block: Block, device: torch.device) -> None:
        layers, _, self.groups, _, capacity, width = block.pairs.shape
        rows = block.rows[: block.running]
        lengths = [row.tokens for row in rows]
        self.count = len(lengths)
        self.longest = _read_length(max(lengths) + 1, capacity)
        self.flat = block.pairs.view(layers, -1, width)
        self.pairs = block.pairs[:, : self.count]
        self.places_N = places = torch.tensor(lengths, device=device)
        # Where a row's keys and values go among all tokens of the block: (N, S).
        heads = torch.arange(2 * self.count * self.groups, device=device)
        starts = heads.view(self.count, self.groups, 2).transpose(1, 2).flatten(1) * capacity
        self.places = starts + places[:, None]
        self.mask_N11L = _mask(places, self.longest, block.pairs.dtype)

    def write(self, layer: int, both_NSD: Tensor) -> Tensor:
        """Write the new keys and values; those (N, G, 2, L, D) that each token may see."""
        self.flat[layer].index_put_((self.places,), both_NSD)
        return self.pairs[layer, :, :, :, : self.longest]


class _Draft:
    """Drafted tokens behind the newest one of a sequence.

    They are put as sequences of their own that share a row, so that each is summed as it is
    when it comes alone.
    """

    def __init__(self, row: CacheRow, drafted: int, device: torch.device) -> None:
        self.pairs, self.index = row.block.pairs, row.index
        self.start, self.end = row.tokens + 1, row.tokens + 1 + drafted
        self.longest = _read_length(self.end, row.block.capacity)
        self.places_N = torch.arange(self.start, self.end, device=device)
        self.mask_N11L = _mask(self.places_N, self.longest, self.pairs.dtype)

    def write(self, layer: int, both_PSD: Tensor) -> Tensor:
        """Write the draft's keys and values; the row, (P, G, 2, L, D), once for each token."""
        row_G2LD = self.pairs[layer, self.index]
        row_G2LD[:, :, self.start : self.end] = both_PSD.unflatten(1, (2, -1)).permute(2, 1, 0, 3)
        return row_G2LD[None, :, :, : self.longest].expand(len(both_PSD), -1, -1, -1, -1)


def _prefixes(
    rows: Sequence[CacheRow], device: torch.device
) -> list[tuple[CacheRow, Tensor | slice]]:
    """Shared prefixes, each with the places of those rows that stand behind it."""
    found: dict[CacheRow, list[int]] = {}
    for place, row in enumerate(rows):
        if row.prefix is not None:
            found.setdefault(row.prefix, []).append(place)
    return [
        (prefix, slice(None) if len(places) == len(rows) else torch.tensor(places, device=device))
        for prefix, places in found.items()
    ]


def _read_length(tokens: int, capacity: int) -> int:
    """Up to where rows are read whose longest has so many tokens."""
    piece = SHORT_PIECE if tokens <= SHORT_ROW else LONG_PIECE
    return min(-(-tokens // piece) * piece, capacity)


def _mask(places_N: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """(N, 1, 1, L): what each token sees, itself and what stands before it."""
    unseen = torch.arange(longest, device=places_N.device) > places_N[:, None]
    mask = torch.zeros(unseen.shape, dtype=dtype, device=places_N.device)
    return mask.masked_fill_(unseen, float("-inf"))[:, None, None]


def _within(mask_N11L: Tensor, places_N: Tensor, window: int | None) -> Tensor:
    """The mask of a layer with this window, if it has one."""
    if window is None:
        return mask_N11L
    far = torch.arange(mask_N11L.shape[-1], device=places_N.device) <= places_N[:, None] - window
    # Not infinite: where a whole prefix is too far away, its softmax stays a number.
    return mask_N11L.masked_fill(far[:, None, None], torch.finfo(mask_N11L.dtype).min)


def _held(row: CacheRow, layer: int) -> Tensor:
    """Keys and values (G, 2, L, D) that a row holds."""
    return row.block.pairs[layer, row.index, :, :, : row.tokens]


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, scores: Scoring, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over a part of what is seen, and the logarithm of its denominator.

    Shapes: query (..., R, D), key and value (..., L, D); output (..., R, D) and (..., R),
    float32.
    """
    found = scores.of(torch.matmul(query, key.transpose(-1, -2)).float(), mask)
    output = torch.matmul(found.softmax(-1).to(query.dtype), value)
    return output.float(), found.logsumexp(-1)


def prefix_attention(
    query_NGRD: Tensor,
    key_GLD: Tensor,
    value_GLD: Tensor,
    scores: Scoring,
    mask_N11L: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`partial_attention` of every row over one prefix, which is read once for all rows."""
    rows, groups, repeats, width = query_NGRD.shape
    query_GQD = query_NGRD.transpose(0, 1).reshape(groups, rows * repeats, width)
    mask_QL = None if mask_N11L is None else mask_N11L[:, 0, 0].repeat_interleave(repeats, 0)
    output, weight = partial_attention(query_GQD, key_GLD, value_GLD, scores, mask_QL)
    output = output.view(groups, rows, repeats, width).transpose(0, 1)
    return output, weight.view(groups, rows, repeats).transpose(0, 1)


def joined_attention(output: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
    """Attention over two parts together, from each part's own.

    Equals one softmax over both: the parts are weighed by their shares of the common
    denominator, which is sigmoid(logsumexp(other's scores) - logsumexp(own scores)).
    """
    share = torch.sigmoid(other_weight - weight)[..., None]
    return torch.lerp(output, other, share)


class _PromptPart:
    """Further tokens of a prompt, or prompts of one length from their beginning."""

    def __init__(self, rows: Sequence[CacheRow], tokens: int, device: torch.device) -> None:
        self.rows, self.prefix = [(row.block.pairs, row.index) for row in rows], rows[0].prefix
        self.tokens, self.total = tokens, tokens * len(rows)
        self.start, self.end = rows[0].tokens, rows[0].tokens + tokens
        self.mask = None
        if before := rows[0].start + self.start:
            seen = torch.ones(tokens, before + tokens, dtype=torch.bool, device=device)
            self.mask, self.before = seen.tril(diagonal=before), before

    def attend(self, layer: int, query_THD: Tensor, both_TSD: Tensor, scores: Scoring) -> Tensor:
        """Writes the keys and values; attention (T, H * D) over all that was read."""
        shape = (len(self.rows), self.tokens)
        query_BHTD = query_THD.unflatten(0, shape).transpose(1, 2)
        pairs_B2GTD = both_TSD.unflatten(0, shape).unflatten(2, (2, -1)).permute(0, 2, 3, 1, 4)
        for own, (pairs, index) in zip(pairs_B2GTD, self.rows, strict=True):
            pairs[layer, index, :, :, self.start : self.end] = own.transpose(0, 1)
        key, value = pairs_B2GTD.unbind(1)
        mask = self.mask
        if mask is not None:
            if scores.window is not None:
                mask = mask.triu(diagonal=self.before - scores.window + 1)
            pairs, index = self.rows[0]
            seen_G2LD = pairs[layer, index, :, :, : self.end]
            if self.prefix is not None:
                seen_G2LD = torch.cat((_held(self.prefix, layer), seen_G2LD), dim=2)
            key, value = seen_G2LD[None].unbind(2)
        output = grouped_attention(query_BHTD, key, value, mask, scores)
        return output.transpose(1, 2).reshape(self.total, -1)


def _together(parts: Sequence[tuple[CacheRow, int]]) -> list[tuple[list[CacheRow], int]]:
    """Neighbouring prompts of one length that are read from their beginning, in one go."""
    found: list[tuple[list[CacheRow], int]] = []
    for row, tokens in parts:
        rows, length = found[-1] if found else ([row], 0)
        if length == tokens and not any(one.tokens or one.prefix for one in (rows[0], row)):
            rows.append(row)
        else:
            found.append(([row], tokens))
    return found


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
