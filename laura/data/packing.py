"""Packing documents into rows without padding.

Documents come in an order shuffled by the seed and wait in a short window. A
row takes those that have waited longest, and the one that fills it best comes
last. Rows are shuffled again, so length tells nothing about when a document is
seen.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from laura.data.sources import Example
from laura.data.templates import Encoded
from laura.errors import DataError
from laura.progress import SILENT, Progress

IGNORED = -100
WINDOW = 256
Overlong = Literal["error", "drop", "truncate"]


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
    """Documents that fit a row, and what was done to make them fit.

    Attributes:
        documents: What is left, in order.
        dropped: Examples left out because they were too long.
        truncated: Examples that were cut and kept.
        split: Examples cut into several documents.
        unlearnable: Documents left out because no token of them is supervised.
    """

    documents: list[Encoded] = field(default_factory=list)
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


def fit(
    encoded: Iterable[Encoded],
    row_tokens: int,
    overlong: Overlong = "error",
    *,
    split_long: bool = False,
) -> Fitted:
    """Make every document fit a row.

    Args:
        encoded: The examples.
        row_tokens: Tokens of a row.
        overlong: What happens to longer examples: `error`, `drop`, or
            `truncate` (an instruct example then loses its end token).
        split_long: Cut longer examples into documents of a row's size instead,
            for pretraining; `overlong` then has nothing to do.

    Raises:
        DataError: an example is too long and `overlong` is `error`.
    """
    fitted = Fitted()
    for item in encoded:
        for document in _fit_one(item, row_tokens, overlong, split_long, fitted):
            if any(document.supervised[1:]):
                fitted.documents.append(document)
            else:
                fitted.unlearnable += 1
    return fitted


def pack(
    encoded: Sequence[Encoded],
    row_tokens: int,
    overlong: Overlong = "error",
    seed: int | str = 0,
    *,
    split_long: bool = False,
    progress: Progress = SILENT,
) -> list[Row]:
    """Pack examples into rows of at most `row_tokens` tokens, none of them padding.

    A pure function of its arguments: the seed decides the order of documents
    and of rows. Every document is in exactly one row.

    Args:
        encoded: The examples.
        row_tokens: Tokens of a row.
        overlong, split_long: As `fit`.
        seed: Decides the order.
        progress: Told what was dropped or cut.

    Raises:
        DataError: an example is too long (and may not be), or nothing is left.
    """
    fitted = fit(encoded, row_tokens, overlong, split_long=split_long)
    if fitted.report:
        progress.say(f"data: {fitted.report} (rows hold {row_tokens} tokens)")
    if not fitted.documents:
        raise DataError(
            f"no example is left to learn from: {fitted.report or 'there were none'}; raise "
            f"train.row_tokens ({row_tokens}) or check the data"
        )
    chance = random.Random(f"laura pack {seed}")
    documents = list(fitted.documents)
    chance.shuffle(documents)
    rows = list(_filled(documents, row_tokens, WINDOW))
    chance.shuffle(rows)
    return rows


def epoch_rows(
    encoded: Sequence[Encoded],
    row_tokens: int,
    seed: int,
    epoch: int,
    overlong: Overlong = "error",
    *,
    split_long: bool = False,
) -> list[Row]:
    """Rows of one epoch: packed anew, a pure function of seed and epoch.

    Raises:
        DataError: as `pack`.
    """
    return pack(encoded, row_tokens, overlong, f"{seed} epoch {epoch}", split_long=split_long)


def stream_rows(
    examples: Iterable[Example],
    encode: Callable[[Example], Encoded],
    row_tokens: int,
    overlong: Overlong = "error",
    *,
    split_long: bool = False,
) -> Iterator[Row]:
    """Pack a stream, holding at most `WINDOW` documents.

    Documents keep about the stream's order; nothing is shuffled.

    Args:
        examples: The stream.
        encode: Makes tokens of one example.
        row_tokens: Tokens of a row.
        overlong, split_long: As `fit`.

    Raises:
        DataError: an example is too long (and may not be).
    """

    def documents() -> Iterator[Encoded]:
        for example in examples:
            yield from fit([encode(example)], row_tokens, overlong, split_long=split_long).documents

    return _filled(documents(), row_tokens, WINDOW)


def batches(rows: Iterable[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Group rows for one optimiser step each.

    A step takes rows as long as they fit `batch_tokens`, at least one: full
    rows give batch_tokens // row_tokens of them. The last step may be smaller.
    """
    batch: list[Row] = []
    tokens = 0
    for row in rows:
        if batch and tokens + len(row.token_ids) > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.token_ids)
    if batch:
        yield batch


def fill_rate(rows: Sequence[Row], row_tokens: int) -> float:
    """Share of the rows' room that holds tokens, a fraction."""
    return sum(len(row.token_ids) for row in rows) / (len(rows) * row_tokens)


def _fit_one(
    item: Encoded, row_tokens: int, overlong: Overlong, split_long: bool, fitted: Fitted
) -> Iterator[Encoded]:
    length = len(item.token_ids)
    if length <= row_tokens:
        yield item
    elif split_long:
        fitted.split += 1
        yield from _pieces(item, row_tokens)
    elif overlong == "truncate":
        fitted.truncated += 1
        yield _piece(item, 0, row_tokens)
    elif overlong == "drop":
        fitted.dropped += 1
    else:
        raise DataError(
            f"example {item.index} has {length} tokens, but a row holds train.row_tokens = "
            f"{row_tokens}; raise train.row_tokens to {length} or more, or set data.overlong to "
            "drop or truncate"
        )


def _pieces(item: Encoded, row_tokens: int) -> Iterator[Encoded]:
    """Row-sized documents; the last is never a single token, which could teach nothing."""
    start, length = 0, len(item.token_ids)
    while start < length:
        stop = min(start + row_tokens, length)
        if length - stop == 1:
            stop -= 1
        yield _piece(item, start, stop)
        start = stop


def _piece(item: Encoded, start: int, stop: int) -> Encoded:
    """Part of a document; its bytes are estimated by its share of supervised tokens."""
    supervised = item.supervised[start:stop]
    supervised[0] = False
    share = sum(supervised) / max(1, sum(item.supervised))
    size = round(item.supervised_bytes * share)
    return Encoded(item.index, item.token_ids[start:stop], supervised, size)


def _filled(documents: Iterable[Encoded], row_tokens: int, window: int) -> Iterator[Row]:
    """Fill row after row from a window of waiting documents.

    The one that has waited longest comes first; once a row is nearly full, the
    longest that fits closes the gap.
    """
    waiting: dict[int, Encoded] = {}
    lengths: list[tuple[int, int]] = []
    for serial, document in enumerate(documents):
        waiting[serial] = document
        insort(lengths, (len(document.token_ids), serial))
        while len(waiting) >= window:
            yield _row(_one_row(waiting, lengths, row_tokens))
    while waiting:
        yield _row(_one_row(waiting, lengths, row_tokens))


def _one_row(
    waiting: dict[int, Encoded], lengths: list[tuple[int, int]], row_tokens: int
) -> list[Encoded]:
    """Take the documents of one row out of those waiting."""
    chosen: list[Encoded] = []
    left = row_tokens
    while waiting:
        oldest = next(iter(waiting))
        length = len(waiting[oldest].token_ids)
        middle = lengths[len(lengths) // 2][0]
        if chosen and left - length < middle and left != length:
            place = bisect_right(lengths, (left, inf)) - 1
            if place < 0:
                break
            length, oldest = lengths[place]
        chosen.append(waiting.pop(oldest))
        lengths.pop(bisect_left(lengths, (length, oldest)))
        left -= length
    return chosen


def _row(documents: list[Encoded]) -> Row:
    row = Row([], [], [], [], [])
    for document in documents:
        tokens, on = document.token_ids, document.supervised
        after = zip(tokens[1:], on[1:], strict=True)
        row.token_ids.extend(tokens)
        row.labels.extend(token if learnt else IGNORED for token, learnt in after)
        row.labels.append(IGNORED)
        row.positions.extend(range(len(tokens)))
        row.lengths.append(len(tokens))
        row.examples.append(document.index)
    return row
