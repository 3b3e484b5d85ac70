"""Attention of one pass: the next token of every sequence that is decoded, and parts of prompts.

    [a sequence's newest token, its draft | another's | ... | part of a prompt | ...]

All tokens stand in one row, so that weights are read once for all of them. A part of a
prompt attends to what its row already holds of the same prompt and to itself, a drafted
token to its row and the draft before it, each as if it came alone in a step of its own.
What stands before several rows (`CacheRow.prefix`) is read once for all of them.

Shapes: T tokens of the pass, N rows, P drafted tokens of one, H heads, G key/value heads,
S = 2 G (keys, then values), R = H / G, L longest row or prefix, D head width, B parts read
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from laura.engine.kv_cache import Block, CacheRow
from laura.models.attention import grouped_attention

# Rows are read up to whole pieces: sums are then taken in the same order whatever the
# neighbours' lengths are, since all that is added is zeros. Products split longer sums.
SHORT_ROW, SHORT_PIECE, LONG_PIECE = 256, 16, 512


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
        self.parts = [_PromptPart(rows, tokens, device) for rows, tokens in _together(parts)]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention (1, T, H, D) of the pass in one layer."""
        both_TSD = torch.cat((key, value), dim=1)[0].transpose(0, 1)
        found = self.attended(layer, query[0].transpose(0, 1), both_TSD, scaling)
        return found.view(1, len(found), *query.shape[1::2])

    def attended(self, layer: int, query_THD: Tensor, both_TSD: Tensor, scaling: float) -> Tensor:
        """Write keys and values of one layer; attention (T, H * D) of the pass."""
        outputs, start = [], self.count
        if self.steps:
            outputs.append(self._decoded(layer, query_THD[:start], both_TSD[:start], scaling))
        for part in self.parts:
            places = slice(start, start + part.total)
            start += part.total
            outputs.append(part.attend(layer, query_THD[places], both_TSD[places], scaling))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _decoded(self, layer: int, query_NHD: Tensor, both_NSD: Tensor, scaling: float) -> Tensor:
        """Attention (N, H * D) of the tokens that are decoded, over rows and shared prefixes."""
        # Heads that share keys become queries of one head: nothing is repeated.
        query = query_NHD.unflatten(1, (both_NSD.shape[1] // 2, -1))
        outputs, weights = [], []
        for step, order in zip(self.steps, self.orders, strict=True):
            pairs_NG2LD = step.write(layer, both_NSD[order])
            own, mask, (keys, values) = query[order], step.mask_N11L, pairs_NG2LD.unbind(2)
            if self.prefixes:
                output, weight = partial_attention(own, keys, values, scaling, mask)
                weights.append(weight)
            else:
                mask = mask.expand(-1, -1, own.shape[2], -1)
                output = scaled_dot_product_attention(own, keys, values, mask, scale=scaling)
            outputs.append(output)
        output = self._in_order(outputs)
        if self.prefixes:
            weight = self._in_order(weights)
            for prefix, places in self.prefixes:
                key, value = _held(prefix, layer).unbind(1)
                found = prefix_attention(query[places], key, value, scaling)
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
        places = torch.tensor(lengths, device=device)
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
        places = torch.arange(self.start, self.end, device=device)
        self.mask_N11L = _mask(places, self.longest, self.pairs.dtype)

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


def _held(row: CacheRow, layer: int) -> Tensor:
    """Keys and values (G, 2, L, D) that a row holds."""
    return row.block.pairs[layer, row.index, :, :, : row.tokens]


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over a part of what is seen, and the logarithm of its denominator.

    Shapes: query (..., R, D), key and value (..., L, D); output (..., R, D) and (..., R),
    float32.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scaling
    scores = scores if mask is None else scores + mask
    output = torch.matmul(scores.softmax(-1).to(query.dtype), value)
    return output.float(), scores.logsumexp(-1)


def prefix_attention(
    query_NGRD: Tensor, key_GLD: Tensor, value_GLD: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """`partial_attention` of every row over one prefix, which is read once for all rows."""
    rows, groups, repeats, width = query_NGRD.shape
    query_GQD = query_NGRD.transpose(0, 1).reshape(groups, rows * repeats, width)
    output, weight = partial_attention(query_GQD, key_GLD, value_GLD, scaling)
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
            self.mask = seen.tril(diagonal=before)

    def attend(self, layer: int, query_THD: Tensor, both_TSD: Tensor, scaling: float) -> Tensor:
        """Writes the keys and values; attention (T, H * D) over all that was read."""
        shape = (len(self.rows), self.tokens)
        query_BHTD = query_THD.unflatten(0, shape).transpose(1, 2)
        pairs_B2GTD = both_TSD.unflatten(0, shape).unflatten(2, (2, -1)).permute(0, 2, 3, 1, 4)
        for own, (pairs, index) in zip(pairs_B2GTD, self.rows, strict=True):
            pairs[layer, index, :, :, self.start : self.end] = own.transpose(0, 1)
        key, value = pairs_B2GTD.unbind(1)
        if self.mask is not None:
            pairs, index = self.rows[0]
            seen_G2LD = pairs[layer, index, :, :, : self.end]
            if self.prefix is not None:
                seen_G2LD = torch.cat((_held(self.prefix, layer), seen_G2LD), dim=2)
            key, value = seen_G2LD[None].unbind(2)
        output = grouped_attention(query_BHTD, key, value, self.mask, scaling)
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
