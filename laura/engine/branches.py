"""The pass over packed pieces of text, some of them trees that share their beginning.

Handed to the model as `decode=` (see attention.py): every piece attends to itself,
each span of it to the spans before it in its own text, and to the stem, if one
stands before the pass (see prefixes.py).

Shapes: H heads, G key/value heads, T tokens of the pass, P tokens of the stem, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laura.engine.prefixes import Piece, packs
from laura.models.attention import grouped_attention

# Pieces behind a stem attend together in blocks of so many tokens: the stem's keys
# are joined with theirs once a block.
BLOCK_TOKENS = 256


@dataclass
class Stem:
    """Keys and values (1, G, P, D) of a beginning that others follow, one pair a layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the beginning."""
        return int(self.layers[0][0].shape[2]) if self.layers else 0


class Branches:
    """Attention of one pass.

    Args:
        pieces: What is read, one after another.
        stem: What stands before every piece.
        keeps: Filled with the keys and values of the pass and of what it follows.
        device: Where the model lives.
    """

    def __init__(
        self, pieces: Sequence[Piece], stem: Stem | None, keeps: Stem | None, device: torch.device
    ) -> None:
        self.stem, self.keeps = stem, keeps
        before = stem.tokens if stem else 0
        blocks = _blocks(pieces) if before else [[piece] for piece in pieces]
        self.lengths = [sum(piece.tokens for piece in block) for block in blocks]
        self.masks = [
            None if not before and len(block[0].spans) == 1 else _mask(block, before).to(device)
            for block in blocks
        ]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention (1, T, H, D) of the pass in one layer."""
        if self.keeps is not None:
            self.keeps.layers.append(self._behind_stem(layer, key, value))
        outputs = []
        pieces = zip(
            self.masks,
            query.split(self.lengths, dim=2),
            key.split(self.lengths, dim=2),
            value.split(self.lengths, dim=2),
            strict=True,
        )
        for mask, part_query, part_key, part_value in pieces:
            keys, values = self._behind_stem(layer, part_key, part_value)
            outputs.append(grouped_attention(part_query, keys, values, mask, scaling))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return joined.transpose(1, 2)

    def _behind_stem(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.stem is None:
            return key, value
        stem_key, stem_value = self.stem.layers[layer]
        return torch.cat([stem_key, key], dim=2), torch.cat([stem_value, value], dim=2)


def _blocks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    groups = packs([piece.tokens for piece in pieces], BLOCK_TOKENS)
    return [[pieces[place] for place in group] for group in groups]


def _mask(block: Sequence[Piece], before: int) -> Tensor:
    """Who sees whom: (tokens of the block, stem and block), True where it does."""
    size = sum(piece.tokens for piece in block)
    mask = torch.zeros(size, before + size, dtype=torch.bool)
    mask[:, :before] = True
    start = 0
    for piece in block:
        begins: list[int] = []
        for span in piece.spans:
            begins.append(start)
            rows = slice(start, start + span.tokens)
            own = before + start
            mask[rows, own : own + span.tokens] = torch.ones(
                span.tokens, span.tokens, dtype=torch.bool
            ).tril()
            place = span.before
            while place is not None:
                begin, seen = before + begins[place], piece.spans[place]
                mask[rows, begin : begin + seen.tokens] = True
                place = seen.before
            start += span.tokens
    return mask
