"""Keys and values of generation, and the kinds of pass that read and write them.

    stem    [shared tokens]                          one copy, read by every row behind it
    rows    [own prompt | answer .......... | free]  one row per answer in work

Each pass is handed to the model as `decode=` (see attention.py), which calls its
`attend` in every layer.

Shapes: B rows, H heads, G key/value heads, R = H / G, T tokens, P stem tokens,
L longest row, D head width, Q = B * R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from laura.engine.branches import Branches, Stem
from laura.engine.prefixes import Piece, Span


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


class Cache:
    """Keys and values of the answers in work, one row each.

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

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` places of row `source` over row `target`."""
        self.keys[:, target, :, :tokens] = self.keys[:, source, :, :tokens]
        self.values[:, target, :, :tokens] = self.values[:, source, :, :tokens]


class ReadPrompts:
    """The pass that reads packed prompts, each after the stem, into their rows.

    Args:
        cache: Where keys and values go.
        rows: Row of each prompt.
        lengths: Own tokens of each prompt; they stand one after another in the pass.
        stem: What all of them follow, if anything.
    """

    def __init__(
        self, cache: Cache, rows: Sequence[int], lengths: Sequence[int], stem: Stem | None
    ) -> None:
        self.cache, self.rows, self.lengths = cache, list(rows), list(lengths)
        pieces = [Piece(None, [Span(0, 0, length)]) for length in self.lengths]
        self.branches = Branches(pieces, stem, None, cache.keys.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of every prompt over the stem and itself; (1, T, H, D)."""
        start = 0
        for row, length in zip(self.rows, self.lengths, strict=True):
            self.cache.keys[layer, row, :, :length] = key[0, :, start : start + length]
            self.cache.values[layer, row, :, :length] = value[0, :, start : start + length]
            start += length
        return self.branches.attend(layer, query, key, value, scaling)


class NextToken:
    """The pass that adds one token to each of the first rows.

    Args:
        cache: Where keys and values are kept.
        lengths: Own tokens each row already holds; the new token goes behind them.
        order: Which row each place of the pass belongs to; None where place i is row i.
        stems: (stem or None, rows) groups of the pass, in its order.
    """

    def __init__(
        self,
        cache: Cache,
        lengths: Sequence[int],
        order: Sequence[int] | None = None,
        stems: Sequence[tuple[Stem | None, int]] = (),
    ) -> None:
        device = cache.keys.device
        self.cache, self.count, self.longest = cache, len(lengths), max(lengths) + 1
        self.places = torch.tensor(lengths, device=device)
        self.rows = torch.arange(self.count, device=device)
        self.order = None if order is None else torch.tensor(order, device=device)
        self.back = None if self.order is None else self.order.argsort()
        self.stems = [*stems] if any(stem for stem, _ in stems) else []
        unseen = torch.arange(self.longest, device=device) > self.places[:, None]
        mask = torch.zeros(unseen.shape, dtype=cache.keys.dtype, device=device)
        self.mask = mask.masked_fill_(unseen, float("-inf"))[:, None, None, :]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of one new token a row over stem and row; (B, 1, H, D)."""
        if self.back is not None:
            query, key, value = query[self.back], key[self.back], value[self.back]
        keys, values = self.cache.keys[layer, : self.count], self.cache.values[layer, : self.count]
        keys[self.rows, :, self.places] = key[:, :, 0]
        values[self.rows, :, self.places] = value[:, :, 0]
        keys, values = keys[:, :, : self.longest], values[:, :, : self.longest]
        rows, heads, _, width = query.shape
        # Heads that share keys become queries of one head: nothing is repeated.
        query_BGRD = query.reshape(rows, keys.shape[1], -1, width)
        if self.stems:
            output = self._with_stems(layer, query_BGRD, keys, values, scaling)
        else:
            mask = self.mask.expand(-1, -1, query_BGRD.shape[2], -1)
            output = scaled_dot_product_attention(
                query_BGRD, keys, values, attn_mask=mask, scale=scaling
            )
            output = output if self.order is None else output[self.order]
        return output.reshape(rows, 1, heads, width)

    def _with_stems(
        self, layer: int, query_BGRD: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        """Each row's own attention, joined with that over its stem; in the pass's order."""
        own, weight = partial_attention(query_BGRD, keys, values, scaling, self.mask)
        if self.order is not None:
            query_BGRD, own, weight = query_BGRD[self.order], own[self.order], weight[self.order]
        parts, start = [], 0
        for stem, count in self.stems:
            rows = slice(start, start + count)
            start += count
            if stem is None:
                parts.append(own[rows])
                continue
            stem_key, stem_value = stem.layers[layer]
            found = attend_to_stem(query_BGRD[rows], stem_key[0], stem_value[0], scaling)
            parts.append(joined_attention(own[rows], weight[rows], *found))
        return torch.cat(parts).to(query_BGRD.dtype)


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


def attend_to_stem(
    query_BGRD: Tensor, key_GPD: Tensor, value_GPD: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """`partial_attention` of every row over one stem, which is read once for all rows."""
    rows, groups, repeats, width = query_BGRD.shape
    query_GQD = query_BGRD.transpose(0, 1).reshape(groups, rows * repeats, width)
    output, weight = partial_attention(query_GQD, key_GPD, value_GPD, scaling)
    output = output.view(groups, rows, repeats, width).transpose(0, 1)
    return output, weight.view(groups, rows, repeats).transpose(0, 1)


def joined_attention(output: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
    """Attention over two parts together, from each part's own.

    Equals one softmax over both: the parts are weighed by their shares of the common
    denominator, which is sigmoid(logsumexp(other's scores) - logsumexp(own scores)).
    """
    share = torch.sigmoid(other_weight - weight)[..., None]
    return torch.lerp(output, other, share)
