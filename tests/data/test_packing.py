from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.data.packing import Row, epoch_rows, fit, step_ends
from laura.data.templates import Encoded
from laura.results.errors import DataError
from laura.results.progress import Silent
from tests.data.packed import fill_rate, pack


def encoded(index: int, length: int, prompt: int = 1) -> Encoded:
    """Tokens that tell their example and place; everything after `prompt` tokens is learnt."""
    tokens = [index * 1000 + place for place in range(length)]
    return Encoded(index, tokens, [place >= max(1, prompt) for place in range(length)], length)


def documents(row: Row) -> list[tuple[int, list[int], list[int], list[int]]]:
    """Example, tokens, labels and positions of each document of a row."""
    found, start = [], 0
    for example, length in zip(row.examples, row.lengths, strict=True):
        stop = start + length
        parts = (row.token_ids, row.labels, row.positions)
        found.append((example, *(part[start:stop] for part in parts)))
        start = stop
    assert start == len(row.token_ids) == len(row.labels) == len(row.positions)
    return found


lengths_and_prompts = st.lists(
    st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    min_size=1,
    max_size=60,
)


@given(lengths_and_prompts, st.integers(0, 5))
@settings(deadline=None)
def test_packed_rows_hold_the_unpacked_documents(shape: list[tuple[int, int]], seed: int) -> None:
    items = {i: encoded(i, length, prompt) for i, (length, prompt) in enumerate(shape)}
    rows = pack(list(items.values()), 40, seed=seed)
    seen = []
    for row in rows:
        assert len(row.token_ids) <= 40
        for index, tokens, labels, positions in documents(row):
            item = items[index]
            assert tokens == item.token_ids
            assert positions == list(range(len(tokens)))
            # The naive reference: predict the next token of the document alone.
            for place, label in enumerate(labels):
                following = place + 1
                learnt = following < len(tokens) and item.supervised[following]
                assert label == (tokens[following] if learnt else -100)
            seen.append(index)
    assert sorted(seen) == sorted(items)


@given(st.lists(st.integers(2, 200), min_size=1, max_size=30), st.integers(8, 50))
@settings(deadline=None)
def test_splitting_loses_and_doubles_no_token(lengths: list[int], row_tokens: int) -> None:
    items = [encoded(i, length) for i, length in enumerate(lengths)]
    rows = pack(items, row_tokens, split_long=True)
    packed = Counter(token for row in rows for token in row.token_ids)
    assert packed == Counter(token for item in items for token in item.token_ids)
    assert all(2 <= length <= row_tokens for row in rows for length in row.lengths)


def test_rows_are_a_pure_function_of_seed_and_epoch() -> None:
    lengths = [2 + i % 37 for i in range(500)]
    assert epoch_rows(lengths, 64, seed=1, epoch=2) == epoch_rows(lengths, 64, seed=1, epoch=2)
    orders = [
        epoch_rows(lengths, 64, seed=seed, epoch=epoch).members
        for seed, epoch in ((1, 0), (1, 1), (0, 1))
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(500)) for order in orders)


def test_rows_are_nearly_full_and_length_tells_nothing_of_the_time() -> None:
    chance = random.Random(0)
    items = [encoded(i, min(1000, int(chance.lognormvariate(5, 0.5)))) for i in range(6000)]
    rows = pack(items, 1024)
    assert fill_rate(rows, 1024) > 0.99
    order = [length for row in rows for length in row.lengths]
    parts = [sum(order[i : i + 1500]) for i in range(0, 6000, 1500)]
    assert max(parts) / min(parts) < 1.08


def test_overlong_examples() -> None:
    items = [encoded(0, 10), encoded(7, 30), encoded(2, 30, prompt=25)]
    message = "example 7 has 30 tokens, but a row holds .* 20; .* drop or truncate"
    with pytest.raises(DataError, match=message):
        pack(items, 20)
    dropped = fit(items, 20, "drop")
    assert list(dropped.places) == [0]
    assert dropped.report == "2 examples too long and dropped"
    cut = fit(items, 20, "truncate")
    assert list(zip(cut.places, cut.lengths, cut.labels, strict=True)) == [(0, 10, 9), (1, 20, 19)]
    assert (cut.truncated, cut.unlearnable) == (2, 1)
    split = fit(items, 20, split_long=True)
    assert list(split.places) == [0, 1, 1, 2]
    assert list(split.starts) == [0, 0, 20, 20]
    for number in range(4):
        row = split.row(items, [number])
        assert sum(label >= 0 for label in row.labels) == split.labels[number]


def test_what_is_dropped_is_said_and_nothing_left_is_an_error() -> None:
    said = []

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    fit([encoded(0, 10), encoded(1, 30)], 20, "drop", progress=Listener())
    assert said == ["data: 1 examples too long and dropped (rows hold 20 tokens)"]
    with pytest.raises(DataError, match=r"no example is left .* 1 examples too long and dropped"):
        fit([encoded(1, 30)], 20, "drop")
    with pytest.raises(DataError, match="no example is left"):
        fit([], 20)


def test_steps_take_as_many_rows_as_fit() -> None:
    assert list(step_ends([1000] * 7, 2048)) == [2, 4, 6, 7]
    assert list(step_ends([1000] * 7, 10)) == list(range(1, 8))
    assert list(step_ends([], 10)) == []
