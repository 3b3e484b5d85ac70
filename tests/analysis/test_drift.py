"""How well a divergence explains forgetting, against numpy's polynomial fit."""

from __future__ import annotations

import numpy as np
import pytest

from laura.analysis.tradeoff import explained


def test_noise_is_explained_as_numpy_does() -> None:
    source = np.random.default_rng(0)
    x, y = source.uniform(0, 2, 30), source.normal(size=30)
    residuals = y - np.polynomial.Polynomial.fit(x, y, 2)(x)
    expected = 1 - (residuals**2).sum() / ((y - y.mean()) ** 2).sum()
    assert explained(x.tolist(), y.tolist()) == pytest.approx(expected)


def test_too_few_or_all_alike_say_nothing() -> None:
    assert explained([], []) is None
    assert explained([1, 2, 3, 4], [1, 2, 3, 5]) is None
    assert explained([1, 1, 1, 2, 2], [1, 2, 3, 4, 5]) is None
    assert explained([1, 2, 3, 4, 5], [1, 1, 1, 1, 1]) is None
