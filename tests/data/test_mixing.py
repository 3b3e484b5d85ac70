"""Replay among the target's rows: shares counted naively, nothing lost, nothing joined."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.data.mixing import Mixer, Pool, Replay
from laura.data.packing import Row, arrange, fit
from laura.data.templates import Encoded
from laura.recipe.sections import BudgetSection, TrainSection
from laura.results.errors import DataError
from laura.study.runs import budget_marks, repeat_caveats
from laura.training.batches import BatchPlan, plan_batches

STRIDE = 1_000_000  # tokens tell their source and example: number * STRIDE + index * 1000 + place
ROW = 64


def pool(number: int, lengths: list[int], weight: float = 1.0, prompt: int = 1) -> Pool:
    items = []
    for index, length in enumerate(lengths):
        tokens = [number * STRIDE + index * 1000 + place for place in range(length)]
        learnt = [place >= min(prompt, length - 1) for place in range(length)]
        items.append(Encoded(index, tokens, learnt, length))
    return Pool(f"source {number}", items, fit(items, ROW), weight)


def lengths(seed: int, count: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randint(2, ROW) for _ in range(count)]


def plan(
    fraction: float, seed: int = 3, prompt: int = 1, exhausted: Any = "repeat", **budget: Any
) -> BatchPlan:
    """60 documents of target, and two sources of replay of which the first weighs threefold."""
    target = pool(0, lengths(0, 60), prompt=prompt)
    others = [pool(1, lengths(1, 25), 3.0), pool(2, lengths(2, 25), 1.0)]
    replay = Replay(fraction, others, exhausted) if fraction else None
    section = TrainSection(batch_tokens=2 * ROW, row_tokens=ROW)
    where = BudgetSection(**(budget or {"tokens": [500, 1200, 4000]}))
    return plan_batches(target.encoded, target.fitted, section, where, seed, replay)


def rows(made: BatchPlan, steps: int | None = None) -> list[Row]:
    return [row for step in range(steps or made.points[-1]) for row in made.batches[step]]


def source(row: Row) -> int:
    numbers = {token // STRIDE for token in row.token_ids}
    assert len(numbers) == 1, "a row holds documents of one source"
    return numbers.pop()


@given(
    st.lists(st.integers(2, ROW), min_size=1, max_size=80),
    st.lists(
        st.tuples(st.lists(st.integers(2, ROW), min_size=1, max_size=9), st.floats(0.01, 100)),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.001, 0.99),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=150)
def test_shares_are_within_half_a_row_after_every_row(
    target_lengths: list[int],
    others: list[tuple[list[int], float]],
    fraction: float,
    seed: int,
) -> None:
    target = pool(0, target_lengths)
    pools = [pool(1 + i, sizes, weight) for i, (sizes, weight) in enumerate(others)]
    order = list(arrange(target.fitted.lengths, ROW, seed))
    mixed = Mixer(target, Replay(fraction, pools), ROW, seed).mixed(order)
    total = sum(weight for _, weight in others)
    counts, read, kept = Counter[int](), [list[int]() for _ in pools], []
    for number, documents in mixed:
        row = [target, *pools][number].row(documents)
        counts[source(row)] += len(row.token_ids)
        replayed = counts.total() - counts[0]
        assert abs(replayed - fraction * counts.total()) <= ROW / 2 + 1e-6
        for place, (_, weight) in enumerate(others):
            assert counts[1 + place] - weight / total * replayed <= ROW + 1e-6
        if number:
            read[number - 1] += documents
        else:
            kept.append(documents)
    assert kept == order, "the target is read in the order it has without replay"
    for place, (sizes, _) in enumerate(others):
        # Pass after pass, each of every document once.
        for start in range(0, len(read[place]) - len(sizes) + 1, len(sizes)):
            assert sorted(read[place][start : start + len(sizes)]) == list(range(len(sizes)))


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.9])
def test_a_budget_in_tokens_counts_both_and_the_record_is_a_naive_count(fraction: float) -> None:
    made = plan(fraction, prompt=20)
    marks = budget_marks(made, [500, 1200, 4000])
    for mark, goal in zip(marks, (500, 1200, 4000), strict=True):
        tokens, learnt, documents = Counter[int](), Counter[int](), Counter[int]()
        for row in rows(made, mark["step"]):
            tokens[source(row)] += len(row.token_ids)
            learnt[source(row)] += sum(label >= 0 for label in row.labels)
            documents[source(row)] += len(row.lengths)
        assert mark["tokens"] == tokens.total() >= goal
        assert mark["supervised_tokens"] == learnt.total()
        mix = mark["mix"]
        assert mix["target_tokens"] == tokens[0]
        assert mix["replay_tokens"] == tokens[1] + tokens[2]
        assert mix["replay_share"] == mix["replay_tokens"] / mark["tokens"]
        assert abs(mix["replay_tokens"] - fraction * mark["tokens"]) <= ROW / 2
        assert abs(tokens[1] - 0.75 * mix["replay_tokens"]) <= ROW
        for number, one in enumerate(mix["sources"]):
            expected = (tokens[number], learnt[number], documents[number])
            assert (one["tokens"], one["supervised_tokens"], one["documents"]) == expected
            available = 60 if number == 0 else 25
            assert one["repeats"] == max(0, (documents[number] - 1) // available)


def test_the_mix_is_a_pure_function_of_the_seed_and_any_step_can_be_taken_first() -> None:
    one, other = plan(0.3), plan(0.3)
    last = one.points[-1]
    backwards = [other.batches[step] for step in reversed(range(last))][::-1]
    assert backwards == [one.batches[step] for step in range(last)]
    assert rows(plan(0.3, seed=4)) != rows(one)
    # A larger budget goes on where the smaller one ends.
    shorter = plan(0.3, tokens=[1200])
    assert rows(shorter) == rows(one, shorter.points[-1])


def test_without_replay_nothing_changes_and_with_it_the_target_keeps_its_order() -> None:
    without, with_replay = plan(0.0, epochs=[2]), plan(0.3, epochs=[2])
    assert not without.mix and budget_marks(without, [2])[0].keys() == {
        "budget", "step", "tokens", "supervised_tokens",
    }  # fmt: skip
    assert [row for row in rows(with_replay) if source(row) == 0] == rows(without)


def test_an_epoch_is_a_pass_over_the_target() -> None:
    made = plan(0.5, epochs=[0.5, 1, 3])
    for epochs, step in zip((1, 3), made.points[1:], strict=True):
        found = Counter(i for row in rows(made, step) if source(row) == 0 for i in row.examples)
        assert found == dict.fromkeys(range(60), epochs)
    half = sum(len(row.lengths) for row in rows(made, made.points[0]) if source(row) == 0)
    assert 20 <= half <= 40


def test_a_source_that_is_used_up_is_begun_anew_and_told_or_refused() -> None:
    made = plan(0.5)
    told = budget_marks(made, [500, 1200, 4000])
    repeats = [one["repeats"] for one in told[-1]["mix"]["sources"]]
    assert repeats[1] >= 1 and repeats[2] == 0
    caveats = repeat_caveats([("lora", mark["mix"]) for mark in told] + [("full", {})])
    times = "once" if repeats[1] == 1 else f"{repeats[1]} times"
    assert caveats == [f"lora used up the replay source source 1 and began it anew {times}."]
    # What a run does not read is not asked for, though the target's epoch goes on beyond.
    assert plan(0.5, exhausted="error", tokens=[500])
    with pytest.raises(DataError, match=r"data\.replay\.0 \(source 1\) has \d+ tokens.*0\.5 needs"):
        plan(0.5, exhausted="error")


def test_long_texts_are_split_and_long_conversations_are_not() -> None:
    text = Encoded(0, list(range(10)), [False] + [True] * 9, 10)
    chat = Encoded(1, list(range(10)), [False] * 4 + [True] * 6, 10)
    assert list(fit([text], 5, split_long="texts").lengths) == [5, 5]
    with pytest.raises(DataError, match="example 1 has 10 tokens"):
        fit([text, chat], 5, split_long="texts")
