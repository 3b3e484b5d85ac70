"""Replay: rows of other sources dealt out among those of the target, by tokens.

Rows hold documents of one source only, so each is packed as it would be alone. Which
source the next row comes from is decided by the tokens dealt so far: target or replay,
whichever brings the share of replay nearer to what is wanted; then the replay source
that is most behind its weight. With rows of at most L tokens the replay tokens are at
any moment within L/2 of the wanted share of all tokens, and no source is more than L
ahead of its weight. All of it is a pure function of the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from laura.data.packing import Fitted, Row, arrange
from laura.data.templates import Encoded
from laura.results.errors import DataError

TARGET = 0  # number of the target's pool; those of the replay sources follow


@dataclass(frozen=True)
class Pool:
    """The documents of one source, fitted to rows.

    Attributes:
        name: What the source is called.
        encoded: Its examples; they may lie in a file.
        fitted: Their documents.
        weight: Its share of the replay, relative to the other sources' weights.
    """

    name: str
    encoded: Sequence[Encoded]
    fitted: Fitted
    weight: float = 1.0

    def row(self, documents: Sequence[int]) -> Row:
        """The row that holds these documents."""
        return self.fitted.row(self.encoded, documents)


@dataclass(frozen=True)
class Replay:
    """What is replayed, and how much of it.

    Attributes:
        fraction: Share of all training tokens, above 0 and below 1.
        pools: The sources.
        exhausted: What happens when a source has been used up: `repeat` or `error`.
    """

    fraction: float
    pools: Sequence[Pool]
    exhausted: Literal["repeat", "error"] = "repeat"


@dataclass(frozen=True)
class Dealt:
    """What a run has read of one source up to some step.

    Attributes:
        name: What the source is called.
        tokens: Tokens that passed through the model.
        supervised: Of these, how many were learnt.
        documents: Documents, those that were read again counted again.
        available: Documents the source has.
    """

    name: str
    tokens: int
    supervised: int
    documents: int
    available: int

    @property
    def repeats(self) -> int:
        """How often the source was begun anew, 0 while its documents sufficed."""
        return max(0, -(-self.documents // self.available) - 1)


class Mixer:
    """Puts rows of the replay sources between those of the target.

    Args:
        target: The target's documents.
        replay: What is replayed.
        row_tokens: Tokens of a row, L above.
        seed: Decides the order within every source.
    """

    def __init__(self, target: Pool, replay: Replay, row_tokens: int, seed: int) -> None:
        self._target, self._fraction, self._row_tokens = target, replay.fraction, row_tokens
        self._streams = [
            _Stream(pool, row_tokens, f"{seed} replay {number}")
            for number, pool in enumerate(replay.pools)
        ]
        total = sum(pool.weight for pool in replay.pools)
        self._weights = [pool.weight / total for pool in replay.pools]
        self._dealt = [0] * len(replay.pools)  # tokens of each source
        self._target_tokens = 0

    def mixed(self, rows: Iterable[Sequence[int]]) -> Iterator[tuple[int, Sequence[int]]]:
        """Rows of the target in their order, and those of the replay that fall between.

        Args:
            rows: Documents of each row of the target.

        Yields:
            Number of a row's pool (0 is the target, 1 the first source) and its documents.
        """
        for documents in rows:
            size = sum(self._target.fitted.lengths[d] for d in documents)
            while self._replay_is_due(size):
                yield self._replay_row()
            self._target_tokens += size
            yield TARGET, documents

    def _replay_is_due(self, target_size: int) -> bool:
        """Whether a row of replay brings the share nearer than the next row of the target."""
        replayed = sum(self._dealt)
        ahead = replayed - self._fraction * (replayed + self._target_tokens)
        after_replay = ahead + (1 - self._fraction) * self._streams[self._behind()].next_size
        after_target = ahead - self._fraction * target_size
        return abs(after_replay) < abs(after_target)

    def _behind(self) -> int:
        """The source that would be most behind its weight after one more row."""
        total = sum(self._dealt) + self._row_tokens
        behind = [w * total - d for w, d in zip(self._weights, self._dealt, strict=True)]
        return behind.index(max(behind))

    def _replay_row(self) -> tuple[int, Sequence[int]]:
        number = self._behind()
        stream = self._streams[number]
        self._dealt[number] += stream.next_size
        return number + 1, stream.take()


class _Stream:
    """The rows of one source without end: pass after pass, each in an order of its own."""

    def __init__(self, pool: Pool, row_tokens: int, seed: str) -> None:
        self._lengths = pool.fitted.lengths
        self._rows = self._endless(row_tokens, seed)
        self._next = next(self._rows)

    @property
    def next_size(self) -> int:
        """Tokens of the next row."""
        return sum(self._lengths[document] for document in self._next)

    def take(self) -> Sequence[int]:
        """The next row's documents."""
        taken, self._next = self._next, next(self._rows)
        return taken

    def _endless(self, row_tokens: int, seed: str) -> Iterator[Sequence[int]]:
        for number in count():
            yield from arrange(self._lengths, row_tokens, f"{seed} pass {number}")


def refuse_repeats(replay: Replay, dealt: Sequence[Dealt]) -> None:
    """Refuse a run that needs more replay than there is, where that is not wanted.

    Args:
        replay: What is replayed.
        dealt: What the whole run reads of each source, the target left out.

    Raises:
        DataError: a source would be repeated and `exhausted` is `error`.
    """
    if replay.exhausted != "error":
        return
    for number, (pool, one) in enumerate(zip(replay.pools, dealt, strict=True)):
        if one.repeats:
            there = sum(pool.fitted.lengths)
            raise DataError(
                f"data.replay.{number} ({pool.name}) has {there} tokens, but a replay fraction of "
                f"{replay.fraction:g} needs {one.tokens} of it, and data.replay_exhausted is "
                "error; give more data, a smaller weight or fraction, or set "
                "data.replay_exhausted: repeat"
            )
