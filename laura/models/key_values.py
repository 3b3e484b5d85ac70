"""Keys and values of generation, and the three kinds of pass that read and write them.

    prefix  [shared tokens]                          one copy, read by every row
    rows    [own prompt | answer .......... | free]  one row per answer in work

Each pass is handed to the model as `decode=` (see attention.py), which calls its
`attend` in every layer.

Shapes: B rows, H heads, G key/value heads, R = H / G, T tokens, P prefix tokens,
L longest row, D head width, Q = B * R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from laura.models.attention import Documents


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


class Cache:
    """Keys and values of a shared prefix and of the rows that follow it.

    Args:
        geometry: Size of the model's keys and values.
        rows: Answers in work at the same time.
        capacity: Most own tokens of one row, prompt and answer together.
        device: Where the cache lives.
    """

    def __init__(self, geometry: Geometry, rows: int, capacity: int, device: torch.device) -> None:
        shape = (geometry.layers, rows, geometry.heads, capacity, geometry.width)
        # Zeros, because a masked place still meets a weight of zero: nan would spread.
        self.keys = torch.zeros(shape, dtype=geometry.dtype, device=device)
        self.values = torch.zeros(shape, dtype=geometry.dtype, device=device)
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.prefix_tokens = 0

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` places of row `source` over row `target`."""
        self.keys[:, target, :, :tokens] = self.keys[:, source, :, :tokens]
        self.values[:, target, :, :tokens] = self.values[:, source, :, :tokens]


class ReadPrefix:
    """The pass that reads the shared prefix (a batch of one) into the cache."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Causal attention; keeps key and value. Layers must come in order."""
        assert layer == len(self.cache.prefix), "layers come in order, each once"
        self.cache.prefix.append((key, value))
        self.cache.prefix_tokens = key.shape[2]
        return _grouped(query, key, value, None, scaling, causal=True).transpose(1, 2)


class ReadPrompts:
    """The pass that reads packed prompts, each after the prefix, into their rows.

    Args:
        cache: Where keys and values go.
        rows: Row of each prompt.
        lengths: Own tokens of each prompt; they stand one after another in the pass.
    """

    def __init__(self, cache: Cache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self.cache, self.rows, self.lengths = cache, list(rows), list(lengths)
        prefix, device = cache.prefix_tokens, cache.keys.device
        self.masks = {
            length: torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(
                prefix
            )
            for length in set(self.lengths)
            if prefix
        }

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of every prompt over the prefix and itself; (1, T, H, D)."""
        starts = starts_of(self.lengths)
        for row, start, length in zip(self.rows, starts, self.lengths, strict=True):
            self.cache.keys[layer, row, :, :length] = key[0, :, start : start + length]
            self.cache.values[layer, row, :, :length] = value[0, :, start : start + length]
        if not self.cache.prefix:
            documents = Documents(self.lengths)
            return documents.attend(query, key, value, scaling, 0.0).transpose(1, 2)
        prefix_key, prefix_value = self.cache.prefix[layer]
        outputs = [
            _grouped(
                query[:, :, start : start + length],
                torch.cat([prefix_key, key[:, :, start : start + length]], dim=2),
                torch.cat([prefix_value, value[:, :, start : start + length]], dim=2),
                self.masks[length],
                scaling,
            )
            for start, length in zip(starts, self.lengths, strict=True)
        ]
        return torch.cat(outputs, dim=2).transpose(1, 2)


class NextToken:
    """The pass that adds one token to each of the first rows.

    Args:
        cache: Where keys and values are kept.
        lengths: Own tokens each row already holds; the new token goes behind them.
    """

    def __init__(self, cache: Cache, lengths: Sequence[int]) -> None:
        device = cache.keys.device
        self.cache, self.count, self.longest = cache, len(lengths), max(lengths) + 1
        self.places = torch.tensor(lengths, device=device)
        self.order = torch.arange(self.count, device=device)
        unseen = torch.arange(self.longest, device=device) > self.places[:, None]
        mask = torch.zeros(unseen.shape, dtype=cache.keys.dtype, device=device)
        self.mask = mask.masked_fill_(unseen, float("-inf"))[:, None, None, :]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of one new token a row over prefix and row; (B, 1, H, D)."""
        keys, values = self.cache.keys[layer, : self.count], self.cache.values[layer, : self.count]
        keys[self.order, :, self.places] = key[:, :, 0]
        values[self.order, :, self.places] = value[:, :, 0]
        keys, values = keys[:, :, : self.longest], values[:, :, : self.longest]
        rows, heads, _, width = query.shape
        # Heads that share keys become queries of one head: nothing is repeated.
        query_BGRD = query.reshape(rows, keys.shape[1], -1, width)
        if self.cache.prefix:
            prefix_key, prefix_value = self.cache.prefix[layer]
            output = attend_in_two_parts(
                query_BGRD, prefix_key[0], prefix_value[0], keys, values, self.mask, scaling
            )
        else:
            mask = self.mask.expand(-1, -1, query_BGRD.shape[2], -1)
            output = scaled_dot_product_attention(
                query_BGRD, keys, values, attn_mask=mask, scale=scaling
            )
        return output.reshape(rows, 1, heads, width)


def attend_in_two_parts(
    query_BGRD: Tensor,
    prefix_key_GPD: Tensor,
    prefix_value_GPD: Tensor,
    key_BGLD: Tensor,
    value_BGLD: Tensor,
    mask_B11L: Tensor,
    scaling: float,
) -> Tensor:
    """Attention over one prefix shared by all rows and over each row's own tokens.

    Equals softmax attention over both together: each part is a softmax of its own,
    and the parts are weighed by their shares of the common denominator, which is
    sigmoid(logsumexp(prefix scores) - logsumexp(own scores)). The prefix is read
    once for all rows, so it costs neither memory nor reading per row.

    Returns:
        Output (B, G, R, D) in the query's number format.
    """
    rows, groups, repeats, width = query_BGRD.shape
    query_GQD = query_BGRD.transpose(0, 1).reshape(groups, rows * repeats, width)
    prefix_scores = torch.matmul(query_GQD, prefix_key_GPD.transpose(1, 2)).float() * scaling
    own_scores = torch.matmul(query_BGRD, key_BGLD.transpose(2, 3)).float() * scaling + mask_B11L
    prefix_output = torch.matmul(prefix_scores.softmax(-1).to(query_GQD.dtype), prefix_value_GPD)
    own_output = torch.matmul(own_scores.softmax(-1).to(query_GQD.dtype), value_BGLD)
    prefix_denominator = prefix_scores.logsumexp(-1).view(groups, rows, repeats).transpose(0, 1)
    share = torch.sigmoid(prefix_denominator - own_scores.logsumexp(-1))[..., None]
    prefix_output = prefix_output.view(groups, rows, repeats, width).transpose(0, 1)
    return torch.lerp(own_output.float(), prefix_output.float(), share).to(query_BGRD.dtype)


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where each of several pieces begins that stand one after another."""
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    causal: bool = False,
) -> Tensor:
    """Attention whose query heads may outnumber the key heads; (B, H, T, D)."""
    grouped = query.shape[1] != key.shape[1]
    output: Tensor = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return output
