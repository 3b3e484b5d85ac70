"""One pass of the live engine: the next token of every answer in work, and parts of prompts.

    [one token a running answer | part of a prompt | part of another prompt | ...]

All tokens stand in one row, so that weights are read once for all of them. A part of a
prompt attends to what its row already holds of the same prompt and to itself.

Shapes: T tokens of the pass, N answers in work, H heads, G key/value heads, R = H / G,
D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from laura.models.attention import grouped_attention
from laura.models.lanes import Block, Row


class LivePass:
    """Attention of the pass; handed to the model as `decode=` (see attention.py).

    Args:
        blocks: Every block with rows in work; these rows' tokens come first, in order.
        parts: (row, tokens) of the prompts read on, in the order of the pass.
        device: Where the model lives.
    """

    def __init__(
        self, blocks: Sequence[Block], parts: Sequence[tuple[Row, int]], device: torch.device
    ) -> None:
        self.steps = [_Step(block, device) for block in blocks]
        self.count = sum(step.count for step in self.steps)
        self.parts = [_Part(row, tokens, device) for row, tokens in parts]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention (1, T, H, D) of the pass in one layer."""
        # The fast kernels want whole heads; the maps before may have left them spread.
        query = query.contiguous()
        outputs, start = [], 0
        query_NHD, key_NGD, value_NGD = (part[0].transpose(0, 1) for part in (query, key, value))
        for step in self.steps:
            rows = slice(start, start + step.count)
            start += step.count
            outputs.append(
                step.attend(layer, query_NHD[rows], key_NGD[rows], value_NGD[rows], scaling)
            )
        for part in self.parts:
            places = slice(start, start + part.tokens)
            start += part.tokens
            own = (query[:, :, places], key[:, :, places], value[:, :, places])
            outputs.append(part.attend(layer, *own, scaling))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined[None]


class _Step:
    """One more token for the rows in work of one block."""

    def __init__(self, block: Block, device: torch.device) -> None:
        self.cache, self.count = block.cache, block.running
        lengths = [row.tokens for row in block.rows[: block.running]]
        self.longest = max(lengths) + 1
        self.places = torch.tensor(lengths, device=device)
        self.rows = torch.arange(self.count, device=device)
        dtype = block.cache.keys.dtype
        self.mask = None
        if min(lengths) + 1 < self.longest:
            unseen = torch.arange(self.longest, device=device) > self.places[:, None]
            mask = torch.zeros(unseen.shape, dtype=dtype, device=device)
            self.mask = mask.masked_fill_(unseen, float("-inf"))[:, None, None, :]

    def attend(
        self, layer: int, query_NHD: Tensor, key_NGD: Tensor, value_NGD: Tensor, scaling: float
    ) -> Tensor:
        """Writes the new keys and values; attention (N, H, D) over each whole row."""
        keys, values = self.cache.keys[layer, : self.count], self.cache.values[layer, : self.count]
        keys[self.rows, :, self.places] = key_NGD
        values[self.rows, :, self.places] = value_NGD
        # Heads that share keys become queries of one head: nothing is repeated.
        query_NGRD = query_NHD.unflatten(1, (keys.shape[1], -1))
        mask = self.mask
        if mask is not None:
            mask = mask.expand(-1, -1, query_NGRD.shape[2], -1)
        output = scaled_dot_product_attention(
            query_NGRD,
            keys[:, :, : self.longest],
            values[:, :, : self.longest],
            attn_mask=mask,
            scale=scaling,
        )
        return output.flatten(1, 2)


class _Part:
    """Further tokens of a prompt."""

    def __init__(self, row: Row, tokens: int, device: torch.device) -> None:
        self.cache, self.place, self.tokens = row.block.cache, row.place, tokens
        self.start, self.end = row.tokens, row.tokens + tokens
        self.mask = None
        if self.start:
            seen = torch.ones(tokens, self.end, dtype=torch.bool, device=device)
            self.mask = seen.tril(diagonal=self.start)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Writes the keys and values; attention (tokens, H, D) over all that was read."""
        keys, values = self.cache.keys[layer, self.place], self.cache.values[layer, self.place]
        keys[:, self.start : self.end] = key[0]
        values[:, self.start : self.end] = value[0]
        if self.start:
            key, value = keys[None, :, : self.end], values[None, :, : self.end]
        return grouped_attention(query, key, value, self.mask, scaling)[0].transpose(0, 1)
