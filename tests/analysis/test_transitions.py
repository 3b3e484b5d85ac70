"""Items that turned, beside plain counting and answers that are guessed."""

from __future__ import annotations

import numpy as np
import pytest

from laura.analysis.transitions import TurnedItems, transitions
from laura.results.statistics import mean


def test_shares_are_those_of_a_plain_count() -> None:
    generator = np.random.default_rng(0)
    before = generator.integers(0, 2, 80).astype(float)
    after = generator.integers(0, 2, (3, 80)).astype(float)
    found = transitions([TurnedItems(before, after)])
    pairs = [(b, a) for own in after for b, a in zip(before, own, strict=True)]
    assert found.forgotten.value == pytest.approx(sum(p == (1, 0) for p in pairs) / 240)
    assert found.gained.value == pytest.approx(sum(p == (0, 1) for p in pairs) / 240)
    net = after.mean() - before.mean()
    assert found.gained.value - found.forgotten.value == pytest.approx(net)
    assert (found.forgotten.n, found.forgotten.seeds, found.luck) == (80, 3, None)


def test_one_seed_has_the_error_of_its_items() -> None:
    before = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    after = np.array([[0.0, 1.0, 1.0, 0.0, 0.0]])
    found = transitions([TurnedItems(before, after)])
    assert found.forgotten.value == pytest.approx(0.4)
    assert found.forgotten.stderr == pytest.approx(mean([1, 0, 0, 1, 0]).stderr)
    assert found.forgotten.seeds == 1


def test_tasks_weigh_the_same_whatever_their_items() -> None:
    lost = TurnedItems(np.ones(10), np.zeros((2, 10)), np.full(10, 4))
    kept = TurnedItems(np.ones(90), np.ones((2, 90)), np.full(90, 2))
    found = transitions([lost, kept])
    assert found.forgotten.value == pytest.approx(0.5)
    assert found.forgotten.n == 100
    assert found.luck == 0.0, "a base that knows all has nothing to guess"


@pytest.mark.parametrize("choices", [2, 4])
@pytest.mark.parametrize("known", [0.0, 0.5])
def test_luck_is_what_guessing_anew_gives(choices: int, known: float) -> None:
    """Nothing was forgotten or learnt: what is not known is guessed, before and after."""
    generator, n = np.random.default_rng(1), 200_000
    sure = generator.random(n) < known
    before = np.where(sure, 1.0, generator.integers(0, choices, n) == 0)
    after = np.where(sure, 1.0, generator.integers(0, choices, n) == 0)[None]
    found = transitions([TurnedItems(before, after, np.full(n, choices))])
    assert found.luck == pytest.approx(found.forgotten.value, abs=0.003)
    assert found.luck == pytest.approx(found.gained.value, abs=0.003)


def test_the_interval_covers_the_truth() -> None:
    """300 studies of three seeds and 100 items in which a fifth of what was right is lost."""
    generator, covered = np.random.default_rng(2), 0
    for _ in range(300):
        before = (generator.random(100) < 0.7).astype(float)
        hard = generator.random(100) < 0.2
        after = np.where(hard, generator.random((3, 100)) < 0.2, before)
        low, high = transitions([TurnedItems(before, after)]).forgotten.interval()
        covered += low <= 0.7 * 0.2 * 0.8 <= high
    assert covered >= 0.92 * 300
