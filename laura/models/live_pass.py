"""One pass of the live engine: the next token of every answer in work, and parts of prompts.

    [one token a running answer | part of a prompt | part of another prompt | ...]

All tokens stand in one row, so that weights are read once for all of them. A part of a
prompt attends to what its row already holds of the same prompt and to itself.

Shapes: T tokens of the pass, N answers in work, H heads, G key/value heads, S = 2 G (keys,
then values), R = H / G, L longest row, D head width, B parts read together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from laura.models.attention import grouped_attention
from laura.models.lanes import Block, Row

# Rows are read up to whole pieces: sums are then taken in the same order whatever the
# neighbours' lengths are, since all that is added is zeros. Products split longer sums.
SHORT_ROW, SHORT_PIECE, LONG_PIECE = 256, 16, 512


class LivePass:
    """Attention of the pass.

    Transformers' modules call `attend` when it is handed to them as `decode=` (see
    attention.py), the live decoder calls `attended`.

    Args:
        running: Rows in work whose next token is read: all there are, in the pass's order.
        parts: (row, tokens) of the prompts read on, behind these.
        device: Where the model lives.
    """

    def __init__(
        self, running: Sequence[Row], parts: Sequence[tuple[Row, int]], device: torch.device
    ) -> None:
        self.count = len(running)
        where = {row: place for place, row in enumerate(running)}
        blocks = list(dict.fromkeys(row.block for row in running))
        orders = [[where[row] for row in block.rows[: block.running]] for block in blocks]
        self.steps = [_Step(block, device) for block in blocks]
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
        self.parts = [_Part(rows, tokens, device) for rows, tokens in _together(parts)]

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
        for step, order in zip(self.steps, self.orders, strict=True):
            outputs.append(step.attend(layer, query_THD[order], both_TSD[order], scaling))
        if self.back is not None:
            outputs = [torch.cat(outputs).index_select(0, self.back)]
        for part in self.parts:
            places = slice(start, start + part.total)
            start += part.total
            outputs.append(part.attend(layer, query_THD[places], both_TSD[places], scaling))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _Step:
    """One more token for the rows in work of one block."""

    def __init__(self, block: Block, device: torch.device) -> None:
        pairs = block.cache.pairs
        layers, _, self.groups, _, capacity, width = pairs.shape
        lengths = [row.tokens for row in block.rows[: block.running]]
        self.count = len(lengths)
        longest = max(lengths) + 1
        piece = SHORT_PIECE if longest <= SHORT_ROW else LONG_PIECE
        self.longest = min(-(-longest // piece) * piece, capacity)
        self.flat = pairs.view(layers, -1, width)
        self.pairs = pairs[:, : self.count]
        places = torch.tensor(lengths, device=device)
        # Where a row's keys and values go among all tokens of the block: (N, S).
        heads = torch.arange(2 * self.count * self.groups, device=device)
        starts = heads.view(self.count, self.groups, 2).transpose(1, 2).flatten(1) * capacity
        self.places = starts + places[:, None]
        unseen = torch.arange(self.longest, device=device) > places[:, None]
        mask = torch.zeros(unseen.shape, dtype=pairs.dtype, device=device)
        self.mask_N11L = mask.masked_fill_(unseen, float("-inf"))[:, None, None]

    def attend(self, layer: int, query_NHD: Tensor, both_NSD: Tensor, scaling: float) -> Tensor:
        """Writes the new keys and values; attention (N, H * D) over each whole row."""
        self.flat[layer].index_put_((self.places,), both_NSD)
        # Heads that share keys become queries of one head: nothing is repeated.
        query_NGRD = query_NHD.unflatten(1, (self.groups, -1))
        keys, values = self.pairs[layer, :, :, :, : self.longest].unbind(2)
        output = scaled_dot_product_attention(
            query_NGRD,
            keys,
            values,
            attn_mask=self.mask_N11L.expand(-1, -1, query_NGRD.shape[2], -1),
            scale=scaling,
        )
        return output.reshape(self.count, -1)


class _Part:
    """Further tokens of a prompt, or prompts of one length from their beginning."""

    def __init__(self, rows: Sequence[Row], tokens: int, device: torch.device) -> None:
        self.rows = [(row.block.cache.pairs, row.place) for row in rows]
        self.tokens, self.total = tokens, tokens * len(rows)
        self.start, self.end = rows[0].tokens, rows[0].tokens + tokens
        self.mask = None
        if self.start:
            seen = torch.ones(tokens, self.end, dtype=torch.bool, device=device)
            self.mask = seen.tril(diagonal=self.start)

    def attend(self, layer: int, query_THD: Tensor, both_TSD: Tensor, scaling: float) -> Tensor:
        """Writes the keys and values; attention (T, H * D) over all that was read."""
        shape = (len(self.rows), self.tokens)
        query_BHTD = query_THD.unflatten(0, shape).transpose(1, 2)
        pairs_B2GTD = both_TSD.unflatten(0, shape).unflatten(2, (2, -1)).permute(0, 2, 3, 1, 4)
        for own, (pairs, place) in zip(pairs_B2GTD, self.rows, strict=True):
            pairs[layer, place, :, :, self.start : self.end] = own.transpose(0, 1)
        key, value = pairs_B2GTD.unbind(1)
        if self.start:
            pairs, place = self.rows[0]
            key, value = pairs[layer, place, None, :, :, : self.end].unbind(2)
        output = grouped_attention(query_BHTD, key, value, self.mask, scaling)
        return output.transpose(1, 2).reshape(self.total, -1)


def _together(parts: Sequence[tuple[Row, int]]) -> Iterator[tuple[list[Row], int]]:
    """Neighbouring prompts of one length that are read from their beginning, in one go."""
    rows: list[Row] = []
    length = 0
    for row, tokens in parts:
        if rows and (row.tokens or rows[0].tokens or tokens != length):
            yield rows, length
            rows = []
        rows.append(row)
        length = tokens
    if rows:
        yield rows, length
