"""Draws of the bootstrap for whole tables of models, items and seeds. No torch.

Shapes: B draws, the first of them the data as they are; M models; I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95
_BLOCK = 4_000_000  # weights held at a time, 32 MB


@dataclass(frozen=True)
class ItemTable:
    """One task on several models, item by item.

    Attributes:
        tops: (M, I): the items' values, or the numerators of a ratio of sums.
        bottoms: (M, I): the denominators; None for a mean.
    """

    tops: Array
    bottoms: Array | None = None


def resample_items(table: ItemTable, draws: int, generator: np.random.Generator) -> Array:
    """Scores of every model under resampled items, (1 + draws, M); the first row is as measured.

    All models see the same items in a draw, so that what they share cancels in
    differences. A ratio is resampled as the ratio of its sums.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    items = table.tops.shape[1]
    block = max(1, _BLOCK // items)
    scores = [_scores(table, np.ones((1, items)))]
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = generator.integers(0, items, (size, items))
        drawn += np.arange(size)[:, None] * items
        weights = np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items)
        scores.append(_scores(table, weights.astype(float)))
    return np.concatenate(scores)


def resample_seeds(seeds: int, draws: int, generator: np.random.Generator) -> Array:
    """Weights of the seeds in every draw, (1 + draws, seeds), each row summing to one.

    The first row weighs all the same. With one seed nothing varies, so its luck is not
    in the interval; with two or three the interval is too narrow by up to
    sqrt((k - 1) / k), as the bootstrap's always is with few units.
    """
    counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    return np.concatenate([np.full((1, seeds), 1 / seeds), counts / seeds])


def quantiles(values: Sequence[float] | Array, level: float = LEVEL) -> tuple[float, float]:
    """The ends of the percentile interval; infinite values count as such."""
    # 1 - 0.95 is not quite 0.05, which would move an end to the next draw.
    ends = [round((1 - level) / 2, 12), round((1 + level) / 2, 12)]
    # Between a number and infinity there is no mean, so an end is one of the draws.
    low, high = np.quantile(np.asarray(values), ends, method="inverted_cdf")
    return float(low), float(high)


def _scores(table: ItemTable, weights: Array) -> Array:
    tops = weights @ table.tops.T
    if table.bottoms is None:
        return np.asarray(tops / weights.sum(axis=1, keepdims=True))
    return np.asarray(tops / (weights @ table.bottoms.T))
