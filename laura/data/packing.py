"""Packing documents into rows without padding.

Documents come in an order shuffled by the seed and wait in a short window. A
row takes those that have waited longest, and the one that fills it best comes
last. Rows are shuffled again, so length tells nothing about when a document is
seen.

What is arranged is lengths and numbers. Tokens are looked at when a row is made,
so they may lie in a file of any size.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from laura.data.templates import Encoded
from laura.results.errors import DataError
from laura.results.progress import SILENT, Progress

Marks = np.ndarray[Any, np.dtype[np.bool_]]
IGNORED = -100
WINDOW = 256
SIGN_EVERY = 1000  # examples between two signs of progress
Overlong = Literal["error", "drop", "truncate"]


@runtime_checkable
class Partly(Protocol):
    """Examples of which a part can be read without the rest."""

    def part(self, place: int, first: int, last: int | None) -> Encoded:
        """Tokens `first` to `last` of the example at `place`."""

    def marks(self, place: int) -> Marks:
        """Which tokens of the example at `place` are supervised; they are not read for it."""


def _numbers() -> array[int]:
    return array("q")


@dataclass(frozen=True)
class Row:
    """Several documents side by side; T tokens in all.

    Attributes:
        token_ids: The tokens, T of them.
        labels: labels[t] is the token to be predicted at position t, the one
            after it in the same document, or -100 where none is supervised.
        positions: Place of each token in its own document, from 0.
        lengths: Tokens of each document; they sum to T.
        examples: Row number (`Encoded.index`) of each document.
    """

    token_ids: list[int]
    labels: list[int]
    positions: list[int]
    lengths: list[int]
    examples: list[int]


@dataclass
class Fitted:
    """Documents that fit a row, as parts of examples, and what was done to make them fit.

    Attributes:
        places: Place of each document's example among the examples.
        starts: First token of each document in its example.
        lengths: Tokens of each document.
        labels: Supervised tokens of each document that something predicts.
        dropped: Examples left out because they were too long.
        truncated: Examples that were cut and kept.
        split: Examples cut into several documents.
        unlearnable: Documents left out because no token of them is supervised.
    """

    places: array[int] = field(default_factory=_numbers)
    starts: array[int] = field(default_factory=_numbers)
    lengths: array[int] = field(default_factory=_numbers)
    labels: array[int] = field(default_factory=_numbers)
    dropped: int = 0
    truncated: int = 0
    split: int = 0
    unlearnable: int = 0

    @property
    def report(self) -> str:
        """One line on everything that was changed; empty if nothing was."""
        parts = {
            "too long and dropped": self.dropped,
            "truncated": self.truncated,
            "split over several rows": self.split,
            "without anything to learn and dropped": self.unlearnable,
        }
        return "; ".join(f"{count} examples {what}" for what, count in parts.items() if count)

    def times(self, answers: int) -> Fitted:
        """The same, each document counted as so many: a question with several answers."""
        if answers == 1:
            return self
        lengths, labels = (
            array("q", (answers * n for n in one)) for one in (self.lengths, self.labels)
        )
        return replace(self, lengths=lengths, labels=labels)

    def row(self, encoded: Sequence[Encoded], documents: Sequence[int]) -> Row:
        """The row that holds these documents, by their numbers here."""
        row = Row([], [], [], [], [])
        for document in documents:
            place, start = self.places[document], self.starts[document]
            stop = start + self.lengths[document]
            if isinstance(encoded, Partly):
                add_document(row, encoded.part(place, start, stop), 0, stop - start)
            else:
                add_document(row, encoded[place], start, stop)
        return row

    def add(self, place: int, start: int, stop: int, labels: int) -> None:
        """Append tokens `start` to `stop` of an example, if there is something to learn."""
        if not labels:
            self.unlearnable += 1
            return
        self.places.append(place)
        self.starts.append(start)
        self.lengths.append(stop - start)
        self.labels.append(labels)


@dataclass(frozen=True)
class Arrangement:
    """Which documents make each row: row r holds members[ends[r]:ends[r + 1]].

    Attributes:
        members: Numbers of documents, row after row.
        ends: Where each row ends, after a leading 0.
    """

    members: array[int]
    ends: array[int]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[array[int]]:
        return (self.members[start:stop] for start, stop in pairwise(self.ends))


def fit(
    encoded: Sequence[Encoded],
    row_tokens: int,
    overlong: Overlong = "error",
    *,
    split_long: bool | Literal["texts"] = False,
    progress: Progress = SILENT,
) -> Fitted:
    """Make every document fit a row.

    Args:
        encoded: The examples; of those in a file only the marks are looked at.
        row_tokens: Tokens of a row.
        overlong: What happens to longer examples: `error`, `drop`, or
            `truncate` (an instruct example then loses its end token).
        split_long: Cut longer examples into documents of a row's size instead,
            for pretraining; `overlong` then has nothing to do. `texts` does so with
            those of which every token is learnt.
        progress: Told what was dropped or cut.

    Raises:
        DataError: an example is too long and `overlong` is `error`, or nothing
            is left.
    """
    fitted = Fitted()
    marks_of = encoded.marks if isinstance(encoded, Partly) else partial(_marks, encoded)
    with progress.bar("fitting examples to rows", len(encoded), "examples") as bar:
        for place in range(len(encoded)):
            marks = marks_of(place)
            cuts = _cuts(encoded, place, marks, row_tokens, overlong, split_long, fitted)
            for start, stop in cuts:
                fitted.add(place, start, stop, int(np.count_nonzero(marks[start + 1 : stop])))
            if place % SIGN_EVERY == SIGN_EVERY - 1:
                bar.advance(SIGN_EVERY)
    if fitted.report:
        progress.say(f"data: {fitted.report} (rows hold {row_tokens} tokens)")
    if not fitted.places:
        raise DataError(
            f"no example is left to learn from: {fitted.report or 'there were none'}; raise "
            f"train.row_tokens ({row_tokens}) or check the data"
        )
    return fitted


def arrange(lengths: Sequence[int], row_tokens: int, seed: int | str) -> Arrangement:
    """Put documents into rows of at most `row_tokens` tokens, none of them padding.

    A pure function of its arguments: the seed decides the order of documents
    and of rows. Every document is in exactly one row.

    Args:
        lengths: Tokens of each document, none longer than a row.
        row_tokens: Tokens of a row.
        seed: Decides the order.
    """
    chance = random.Random(f"laura pack {seed}")
    order = array("q", range(len(lengths)))
    chance.shuffle(order)
    filled, ends = _numbers(), array("q", [0])
    for row in _filled(order, lengths, row_tokens, WINDOW):
        filled.extend(row)
        ends.append(len(filled))
    rows = array("q", range(len(ends) - 1))
    chance.shuffle(rows)
    members, new_ends = _numbers(), array("q", [0])
    for number in rows:
        members.extend(filled[ends[number] : ends[number + 1]])
        new_ends.append(len(members))
    return Arrangement(members, new_ends)


def epoch_rows(lengths: Sequence[int], row_tokens: int, seed: int, epoch: int) -> Arrangement:
    """Rows of one epoch: arranged anew, a pure function of seed and epoch."""
    return arrange(lengths, row_tokens, f"{seed} epoch {epoch}")


def step_ends(row_lengths: Iterable[int], batch_tokens: int) -> Iterator[int]:
    """How many rows are used up after each optimiser step.

    A step takes rows as long as they fit `batch_tokens`, at least one: full
    rows give batch_tokens // row_tokens of them. The last step may be smaller.

    Args:
        row_lengths: Tokens of each row, in order.
        batch_tokens: Tokens of one step.
    """
    tokens = rows = 0
    for length in row_lengths:
        if tokens and tokens + length > batch_tokens:
            yield rows
            tokens = 0
        rows += 1
        tokens += length
    if tokens:
        yield rows


def _marks(encoded: Sequence[Encoded], place: int) -> Marks:
    return np.array(encoded[place].supervised, bool)


def _cuts(
    encoded: Sequence[Encoded],
    place: int,
    marks: Marks,
    row_tokens: int,
    overlong: Overlong,
    split_long: bool | Literal["texts"],
    fitted: Fitted,
) -> Iterator[tuple[int, int]]:
    """First token and end of each document an example becomes."""
    length = len(marks)
    if length <= row_tokens:
        yield 0, length
    elif split_long is True or (split_long == "texts" and marks[1:].all()):
        fitted.split += 1
        yield from _split(length, row_tokens)
    elif overlong == "truncate":
        fitted.truncated += 1
        yield 0, row_tokens
    elif overlong == "drop":
        fitted.dropped += 1
    else:
        raise DataError(
            f"example {encoded[place].index} has {length} tokens, but a row holds "
            f"train.row_tokens = {row_tokens}; raise train.row_tokens to {length} or more, or set "
            "data.overlong to drop or truncate"
        )


def _split(length: int, row_tokens: int) -> Iterator[tuple[int, int]]:
    """Row-sized parts; the last is never a single token, which could teach nothing."""
    start = 0
    while start < length:
        stop = min(start + row_tokens, length)
        if length - stop == 1:
            stop -= 1
        yield start, stop
        start = stop


def _filled(
    order: Iterable[int], lengths: Sequence[int], row_tokens: int, window: int
) -> Iterator[list[int]]:
    """Fill row after row from a window of waiting documents.

    The one that has waited longest comes first; once a row is nearly full, the
    longest that fits closes the gap.
    """
    waiting: dict[int, int] = {}  # serial number to document, oldest first
    by_length: list[tuple[int, int]] = []
    for serial, document in enumerate(order):
        waiting[serial] = document
        insort(by_length, (lengths[document], serial))
        while len(waiting) >= window:
            yield _one_row(waiting, by_length, lengths, row_tokens)
    while waiting:
        yield _one_row(waiting, by_length, lengths, row_tokens)


def _one_row(
    waiting: dict[int, int],
    by_length: list[tuple[int, int]],
    lengths: Sequence[int],
    row_tokens: int,
) -> list[int]:
    """Take the documents of one row out of those waiting."""
    chosen: list[int] = []
    left = row_tokens
    while waiting:
        oldest = next(iter(waiting))
        length = lengths[waiting[oldest]]
        middle = by_length[len(by_length) // 2][0]
        if chosen and left - length < middle and left != length:
            place = bisect_right(by_length, (left, inf)) - 1
            if place < 0:
                break
            length, oldest = by_length[place]
        chosen.append(waiting.pop(oldest))
        by_length.pop(bisect_left(by_length, (length, oldest)))
        left -= length
    return chosen


def add_document(row: Row, item: Encoded, start: int, stop: int) -> None:
    """Add tokens `start` to `stop` of an example as one document of a row."""
    tokens, learnt = item.token_ids[start:stop], item.supervised[start + 1 : stop]
    row.token_ids.extend(tokens)
    row.labels.extend(t if on else IGNORED for t, on in zip(tokens[1:], learnt, strict=True))
    row.labels.append(IGNORED)
    row.positions.extend(range(len(tokens)))
    row.lengths.append(len(tokens))
    row.examples.append(item.index)
