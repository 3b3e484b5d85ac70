"""Learning against forgetting: the front, the area, what a level needs, drift. No torch.

Words. `learnt` is the learning task's score turned so that higher is better. `forgotten`
is how much worse the source scores are than the base's, so that higher is worse; 0 for
the base, below 0 where something was gained. A *cell* is one arm at one learning rate
and one budget, averaged over its seeds.

Source: axes and curves of Biderman et al. 2024, arXiv:2405.09673, figure 3. That whole
sweeps over the rate are compared, not single points: Lin et al. 2025, arXiv:2509.20758.

Shapes: B draws of the bootstrap, the first of them the data as they are; M models; I items;
T budgets, rising.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laura.results.schema import Area

ROUNDING = 1e-9  # a smaller range of scores is none


@dataclass(frozen=True)
class CurvePoint:
    """An arm at one rate and budget, the mean over its seeds.

    Attributes:
        rates: The rate; several where each seed is at its own best.
        budget: Tokens or epochs.
        seeds: Seeds, rising.
        runs: Their runs.
        learnt: (B,), higher is better.
        forgotten: (B,), higher is worse.
    """

    rates: tuple[float, ...]
    budget: float
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    learnt: Array
    forgotten: Array


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other beats: (learnt, forgotten), the most learnt first.

    A point is beaten by one that learnt at least as much and forgot at most as much, and
    is better in one of the two. Of equal points the first stands.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1], i))
    front: list[int] = []
    for place in order:
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front


def area(cells: Sequence[CurvePoint], base: Array, most: tuple[float, float]) -> Array:
    """Share of the trade-off plane that an arm's cells dominate, (B,), 0 to 1.

    Formula: the area of the union of the rectangles that reach from each cell (gain g,
    forgotten f, both cut to the plane) to gain 0 and to the most forgotten F, over
    G F. An arm that gains G and forgets nothing has 1; the base alone 0.

    Args:
        cells: The arm's cells.
        base: (B,): the base's learning score, turned so that higher is better.
        most: G and F, the sides of the plane, the same for all arms and draws.

    Source:
        Zitzler and Thiele 1998 (PPSN V), the hypervolume of a front in two dimensions.
        Under noise the area of several cells is too large, as every maximum is.
    """
    gain = np.clip(np.stack([cell.learnt - base for cell in cells], 1), 0, most[0])
    loss = np.clip(np.stack([cell.forgotten for cell in cells], 1), 0, most[1])
    order = np.argsort(-gain, axis=1, kind="stable")
    gain, loss = np.take_along_axis(gain, order, 1), np.take_along_axis(loss, order, 1)
    kept = most[1] - np.minimum.accumulate(loss, axis=1)
    steps = gain - np.concatenate([gain[:, 1:], np.zeros((len(gain), 1))], axis=1)
    return np.asarray((steps * kept).sum(axis=1) / (most[0] * most[1]))


def areas(arms: Mapping[str, Sequence[CurvePoint]], base: Array) -> dict[str, Area]:
    """The area of every arm with its interval; empty where nobody learnt or forgot anything.

    The plane reaches as far as the cell that gained most and the one that forgot most.
    """
    cells = [cell for own in arms.values() for cell in own]
    gain = max((float(cell.learnt[0] - base[0]) for cell in cells), default=0.0)
    loss = max((float(cell.forgotten[0]) for cell in cells), default=0.0)
    if gain <= ROUNDING or loss <= ROUNDING:
        return {}
    found = {}
    for name, own in arms.items():
        if own:
            values = area(own, base, (gain, loss))
            seeds = min(len(cell.seeds) for cell in own)
            found[name] = Area(value=float(values[0]), interval=quantiles(values[1:]), seeds=seeds)
    return found


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


# Shares of the way from the base to the best arm's best score.
LEVELS = (0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Needed:
    """What an arm needs.

    Attributes:
        value: Tokens or epochs; None where the level is never reached.
        at_most: Whether the smallest budget already reaches it, so that less may do.
        interval: Percentile interval over items and seeds; an end that is None is
            beyond the largest budget. None as a whole where hardly any draw gets there.
        reached: Share of the draws that get there.
    """

    value: float | None
    at_most: bool
    interval: tuple[float | None, float | None] | None
    reached: float


def needed(budgets: Sequence[float], learnt_BT: Array, level: float) -> Needed:
    """The budget at which a curve first reaches a level, interpolated on the log of the budget.

    Formula: with the first T whose score is at least the level, and the budget before it,
    ln t = ln t_0 + (ln t_1 - ln t_0) (level - l_0) / (l_1 - l_0). What the curve does
    later does not matter.

    Args:
        budgets: Tokens or epochs, rising.
        learnt_BT: The scores there, turned so that higher is better.
        level: The level, turned alike.

    Raises:
        ValueError: budgets that do not rise from above 0, or another number of scores.
    """
    times = np.asarray(budgets, float)
    if not len(times) or times[0] <= 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"budgets rise from above 0, came {list(budgets)}")
    if learnt_BT.shape[1] != len(budgets):
        raise ValueError(f"{len(budgets)} budgets but {learnt_BT.shape[1]} scores")
    logs, there = np.log(times), learnt_BT >= level
    first = there.argmax(axis=1)
    rows, before = np.arange(len(learnt_BT)), np.maximum(first - 1, 0)
    low, high = learnt_BT[rows, before], learnt_BT[rows, first]
    span = np.where(high > low, high - low, 1.0)
    share = np.where(first > 0, (level - low) / span, 0.0)
    found = times[before] * np.exp((logs[first] - logs[before]) * share)
    found = np.where(there.any(axis=1), found, np.inf)
    low_end, high_end = map(_finite, quantiles(found[1:]))
    interval = None if low_end is None else (low_end, high_end)
    reached = float(np.isfinite(found[1:]).mean())
    return Needed(_finite(float(found[0])), bool(there[0, 0]), interval, reached)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def explained(distances: Sequence[float], forgotten: Sequence[float]) -> float | None:
    """R^2 of the quadratic least-squares fit of forgetting on a divergence.

    Formula: 1 - sum (y - a - b x - c x^2)^2 / sum (y - mean y)^2. It says how well one
    curve fits all models whatever their method; three parameters fit three points.

    Args:
        distances: Divergence from the base of each model, nats per token.
        forgotten: What each model forgot.

    Returns:
        At most 1; None with fewer than five models, fewer than three different
        divergences, or where nothing differs in what was forgotten.

    Source:
        Shenfeld, Pari and Agrawal 2025, arXiv:2509.04259 (R^2 of 0.96 for forward KL
        on new-task inputs in a toy, 0.71 for Qwen2.5-3B).
    """
    import numpy as np

    x, y = np.asarray(distances, float), np.asarray(forgotten, float)
    spread = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    if len(x) < 5 or len(set(x.tolist())) < 3 or spread == 0:
        return None
    terms = np.vander(x / np.abs(x).max(), 3)
    fitted = terms @ np.linalg.lstsq(terms, y, rcond=None)[0]
    return 1 - float(((y - fitted) ** 2).sum()) / spread
