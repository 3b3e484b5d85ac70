"""What an arm needs to reach a level: closed forms, the naive way, and what is never reached."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laura.analysis.tradeoff import needed

BUDGETS = [1000, 2000, 8000]


def test_never_reached_is_none_and_at_once_is_at_most_the_first() -> None:
    scores = np.array([[1.0, 2.0, 3.0]] * 3)
    never = needed(BUDGETS, scores, 3.5)
    assert (never.value, never.interval, never.reached) == (None, None, 0)
    once = needed(BUDGETS, scores, 0.5)
    assert (once.value, once.at_most, once.interval) == (1000, True, (1000, 1000))


def test_an_open_end_is_none() -> None:
    # The data and nine draws of ten reach it.
    scores = np.array([[0.0, 1.0, 3.0]] * 10 + [[0.0, 1.0, 1.5]])
    found = needed(BUDGETS, scores, 2.0)
    assert found.value == pytest.approx(4000) and found.reached == 0.9
    assert found.interval is not None and found.interval[1] is None


def test_noise_against_the_naive_way() -> None:
    source = np.random.default_rng(0)
    scores = np.sort(source.normal(size=(301, 3)), axis=1) + source.normal(0, 0.3, (301, 3))
    level = 0.3

    def one(row: np.ndarray) -> float:
        if row[0] >= level:
            return BUDGETS[0]
        for i in (1, 2):
            if row[i] >= level:
                logs = np.log([BUDGETS[i - 1], BUDGETS[i]])
                return float(np.exp(np.interp(level, [row[i - 1], row[i]], logs)))
        return math.inf

    expected = np.array([one(row) for row in scores])
    found = needed(BUDGETS, scores, level)
    assert (found.value or math.inf) == pytest.approx(expected[0])
    assert found.reached == np.isfinite(expected[1:]).mean()
    low = np.quantile(expected[1:], 0.025, method="inverted_cdf")
    assert found.interval is not None and found.interval[0] == pytest.approx(low)


@pytest.mark.parametrize("budgets", [[], [0, 1, 2], [1, 1, 2], [3, 2, 1]])
def test_budgets_that_do_not_rise_are_refused(budgets: list[float]) -> None:
    with pytest.raises(ValueError, match="budgets rise from above 0"):
        needed(budgets, np.zeros((2, 3)), 0.0)
    with pytest.raises(ValueError, match="2 budgets but 3 scores"):
        needed([1, 2], np.zeros((2, 3)), 0.0)
