"""From texts over a plan of passes (prefixes.py) to what the model is given, pass by pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from laura.engine.branches import Branches, Stem
from laura.engine.prefixes import Pass, Reading, plan
from laura.engine.requests import TokenDocument
from laura.models.attention import Documents
from laura.results.errors import DataError


@dataclass
class Text:
    """A text to be read, the places after which a target is asked for, and who asked."""

    tokens: tuple[int, ...]
    slot: int | None
    asked: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    @property
    def reading(self) -> Reading:
        """What has to be read."""
        return Reading(self.tokens, tuple(self.asked), self.slot)


def supervised(document: TokenDocument, slot: int | None) -> Text:
    """A document as a text whose supervised tokens are asked for."""
    if len(document.token_ids) != len(document.supervised):
        raise DataError(
            f"document {document.index} has {len(document.token_ids)} tokens and "
            f"{len(document.supervised)} supervision marks; both must be equally many"
        )
    targets = [i for i, asked in enumerate(document.supervised) if asked and i > 0]
    ids = document.token_ids
    return Text(tuple(ids[:-1]), slot, [i - 1 for i in targets], [ids[i] for i in targets])


class Passes:
    """The passes still needed, with their inputs; stems are kept as long as others follow.

    Args:
        readings: What is read.
        passes: The plan.
        device: Where the model lives.
    """

    def __init__(
        self, readings: Sequence[Reading], passes: Sequence[Pass], device: torch.device
    ) -> None:
        self.readings, self.passes, self.device = readings, list(passes), device
        self.last_use = {one.follows: place for place, one in enumerate(self.passes)}

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return sum(one.tokens for one in self.passes)

    def __iter__(self) -> Iterator[tuple[Pass, dict[str, Any]]]:
        stems: dict[int, Stem] = {}
        for place, one in enumerate(self.passes):
            follows = stems[one.follows] if one.follows is not None else None
            keeps = None
            if one.keeps in self.last_use and one.keeps is not None:
                keeps = stems[one.keeps] = Stem()
            reading = Branches(one.pieces, follows, keeps, self.device)
            yield one, {**_inputs(self.readings, one, self.device), "decode": reading}
            if one.follows is not None and self.last_use[one.follows] == place:
                del stems[one.follows]


def read_along(
    readings: Sequence[Reading], row_tokens: int, device: torch.device, done: set[int]
) -> Passes:
    """Passes that share common beginnings; those that only `done` readings need are left out."""
    passes = [one for one in plan(readings, row_tokens) if one.needed - done]
    return Passes(readings, passes, device)


def read_once(
    readings: Sequence[Reading], row_tokens: int, device: torch.device
) -> Iterator[tuple[Pass, dict[str, Any], torch.Tensor]]:
    """Passes that share nothing, so that several models can read the same inputs.

    Yields:
        The pass, the model's inputs, and the places of its asks.
    """
    for one in plan(readings, row_tokens, share=False):
        documents = Documents([piece.tokens for piece in one.pieces])
        places = torch.tensor([place for _, _, place in one.asks], device=device)
        yield one, {**_inputs(readings, one, device), "documents": documents}, places


def _inputs(readings: Sequence[Reading], one: Pass, device: torch.device) -> dict[str, Any]:
    spans = [span for piece in one.pieces for span in piece.spans]
    ids = [token for s in spans for token in readings[s.reading].tokens[s.start : s.end]]
    positions = [place for span in spans for place in range(span.start, span.end)]
    return {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
    }


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
