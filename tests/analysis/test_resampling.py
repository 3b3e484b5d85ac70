"""The bootstrap's tables against draws made one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laura.analysis import tradeoff
from laura.analysis.tradeoff import ItemTable, quantiles, resample_items, resample_seeds


@pytest.mark.parametrize("ratio", [False, True])
def test_items_are_resampled_together(ratio: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tradeoff, "_BLOCK", 40)  # several blocks, the last one shorter
    source = np.random.default_rng(1)
    tops, bottoms = source.normal(size=(3, 11)), source.integers(1, 9, (3, 11)).astype(float)
    table = ItemTable(tops, bottoms if ratio else None)
    found = resample_items(table, 7, np.random.default_rng(5))
    assert found.shape == (8, 3)
    generator = np.random.default_rng(5)
    drawn = [row for size in (3, 3, 1) for row in generator.integers(0, 11, (size, 11))]
    for row, items in zip(found, [np.arange(11), *drawn], strict=True):
        for model, score in enumerate(row):
            weight = sum(bottoms[model, i] for i in items) if ratio else 11
            assert score == pytest.approx(sum(tops[model, i] for i in items) / weight)


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=(1, 400))
    found = resample_items(ItemTable(values), 20_000, np.random.default_rng(3))
    assert found[1:].std() == pytest.approx(values.std() / 20, rel=0.03)


def test_seeds_weigh_one_together() -> None:
    weights = resample_seeds(3, 5000, np.random.default_rng(0))
    assert weights.shape == (5001, 3) and (weights[0] == 1 / 3).all()
    assert weights.sum(axis=1) == pytest.approx(np.ones(5001))
    # The variance of a mean of k drawn with replacement is the population's over k.
    values = np.array([1.0, 2.0, 6.0])
    assert (weights[1:] @ values).var() == pytest.approx(values.var() / 3, rel=0.06)
    assert (resample_seeds(1, 4, np.random.default_rng(0)) == 1).all()


def test_quantiles_take_the_infinite_as_it_is() -> None:
    values = [*range(1, 91), *[math.inf] * 10]
    assert quantiles(values) == (3, math.inf)
    assert quantiles(values, 0.5) == (25, 75)
