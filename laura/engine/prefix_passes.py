"""Passes over packed texts that share their beginnings, as `prefix_tree` plans them.

A pass is handed to the model as `decode=` (see attention.py): every piece attends to itself,
each span of it to the spans before it in its own text, and to the shared prefix, if one stands
before the pass.

Shapes: H heads, G key/value heads, T tokens of the pass, P tokens of the prefix, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laura.engine.prefix_tree import ScoringPass, Text, TokenSpan, packs
from laura.engine.requests import TokenDocument
from laura.models.attention import grouped_attention
from laura.results.errors import DataError

# Pieces behind a prefix attend together in blocks of so many tokens: the prefix's keys
# are joined with theirs once a block.
BLOCK_TOKENS = 256


@dataclass
class PrefixKeys:
    """Keys and values (1, G, P, D) of a beginning that others follow, one pair a layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the beginning."""
        return int(self.layers[0][0].shape[2]) if self.layers else 0


class TreeAttention:
    """Attention of one pass.

    Args:
        pieces: What is read, one after another.
        prefix: What stands before every piece.
        keeps: Filled with the keys and values of the pass and of what it follows.
        device: Where the model lives.
    """

    def __init__(
        self,
        pieces: Sequence[TokenSpan],
        prefix: PrefixKeys | None,
        keeps: PrefixKeys | None,
        device: torch.device,
    ) -> None:
        self.prefix, self.keeps = prefix, keeps
        before = prefix.tokens if prefix else 0
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
            self.keeps.layers.append(self._behind_prefix(layer, key, value))
        outputs = []
        pieces = zip(
            self.masks,
            query.split(self.lengths, dim=2),
            key.split(self.lengths, dim=2),
            value.split(self.lengths, dim=2),
            strict=True,
        )
        for mask, part_query, part_key, part_value in pieces:
            keys, values = self._behind_prefix(layer, part_key, part_value)
            outputs.append(grouped_attention(part_query, keys, values, mask, scaling))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return joined.transpose(1, 2)

    def _behind_prefix(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.prefix is None:
            return key, value
        prefix_key, prefix_value = self.prefix.layers[layer]
        return torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)


def _blocks(pieces: Sequence[TokenSpan]) -> list[list[TokenSpan]]:
    groups = packs([piece.tokens for piece in pieces], BLOCK_TOKENS)
    return [[pieces[place] for place in group] for group in groups]


def _mask(block: Sequence[TokenSpan], before: int) -> Tensor:
    """Who sees whom: (tokens of the block, prefix and block), True where it does."""
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


def supervised(document: TokenDocument, slot: int | None) -> Text:
    """A document as a text whose supervised tokens are asked for."""
    if len(document.token_ids) != len(document.supervised):
        raise DataError(
            f"document {document.index} has {len(document.token_ids)} tokens and "
            f"{len(document.supervised)} supervision marks; both must be equally many"
        )
    targets = [i for i, asked in enumerate(document.supervised) if asked and i > 0]
    ids = document.token_ids
    return Text(tuple(ids[:-1]), [i - 1 for i in targets], slot, [ids[i] for i in targets])


def inputs_of(
    texts: Sequence[Text], passes: Sequence[ScoringPass], device: torch.device
) -> Iterator[tuple[ScoringPass, dict[str, Any]]]:
    """The model's inputs, pass by pass; prefixes are kept as long as others follow."""
    last_use = {one.follows: place for place, one in enumerate(passes)}
    prefixes: dict[int, PrefixKeys] = {}
    for place, one in enumerate(passes):
        follows = prefixes[one.follows] if one.follows is not None else None
        keeps = None
        if one.keeps in last_use and one.keeps is not None:
            keeps = prefixes[one.keeps] = PrefixKeys()
        spans = [span for piece in one.pieces for span in piece.spans]
        ids = [token for span in spans for token in texts[span.text].tokens[span.start : span.end]]
        positions = [position for span in spans for position in range(span.start, span.end)]
        yield (
            one,
            {
                "input_ids": torch.tensor([ids], device=device),
                "position_ids": torch.tensor([positions], device=device),
                "decode": TreeAttention(one.pieces, follows, keeps, device),
            },
        )
        if one.follows is not None and last_use[one.follows] == place:
            del prefixes[one.follows]


def by_place(asks: list[tuple[int, int, int]], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Parts of sorted asks, each of at most `most` places."""
    part: list[tuple[int, int, int]] = []
    places = 0
    for ask in asks:
        if not part or ask[2] != part[-1][2]:
            if places == most:
                yield part
                part, places = [], 0
            places += 1
        part.append(ask)
    if part:
        yield part
