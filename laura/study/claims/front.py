"""Forgetting at equal learning: the fronts of two arms, over all their rates and budgets.

For each seed an arm's front at a level of learning is the least forgetting among its points
(a rate at a budget) that learnt at least so much. The difference of two fronts, averaged
over the range of learning that both reach, is the figure for "at equal learning".

Two things would make an arm win by luck, and both are taken out. A point is chosen on one
half of the items, of learning and of forgetting, and measured on the other half, both ways.
And an arm with more points has more tries: fronts are compared over equally many points of
each, the mean over random subsets of the larger.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laura.results.statistics import (
    MIN_ITEMS,
    MIN_SEEDS,
    Contrast,
    TooThin,
    count,
    crossed,
)
from laura.results.task_result import TaskResult
from laura.study.claims.capability import learnt
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Scores, Setting

SUBSETS = 24
LEVELS = 32


@dataclass(frozen=True)
class EqualLearning:
    """Two arms at equal learning.

    Attributes:
        difference: Forgetting of the first minus that of the second; above 0, it forgets more.
        levels: The range of learning (gain over the base) it is the mean over, averaged over
            seeds.
    """

    difference: Contrast
    levels: tuple[float, float]


@dataclass(frozen=True)
class _Points:
    """All points of one arm with one seed.

    Attributes:
        learnt: (halves, points): gain in learning on each half of the items.
        forgot: (halves, points): forgetting on each half.
        items: Task to (points, items): forgetting by item, times the task's weight.
    """

    learnt: NDArray[Any]
    forgot: NDArray[Any]
    items: Mapping[str, NDArray[Any]]


def equal_learning(setting: Setting, first: Kind, second: Kind) -> EqualLearning:
    """Compare the fronts of two arms.

    Raises:
        TooThin: too few seeds, items, no level of learning above the base's that both reach, or
            an arm that, tuned, has not surely learnt anything: noise would be the level.
    """
    key = ("fronts", first.name, second.name)
    if key not in setting.known:
        setting.known[key] = _compare(setting, first, second)
    found: EqualLearning = setting.known[key]
    return found


def _compare(setting: Setting, first: Kind, second: Kind) -> EqualLearning:
    sides = [_points_of(setting, arm) for arm in (first, second)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if len(shared) < MIN_SEEDS:
        raise TooThin(
            f"{count(len(shared), 'seed')} with points of both {first.name} and {second.name}; "
            f"{MIN_SEEDS} are needed"
        )
    rows: list[dict[str, NDArray[Any]]] = []
    ranges = []
    for seed in shared:
        found = _difference(sides[0][seed], sides[1][seed], f"{first.name}/{second.name}")
        if found is not None:
            rows.append(found[0])
            ranges.append(found[1])
    if len(rows) < MIN_SEEDS:
        raise TooThin(
            f"{first.name} and {second.name} share a level of learning above the base's with "
            f"{count(len(rows), 'seed')} only; {MIN_SEEDS} are needed: add rates or budgets "
            "between them"
        )
    learnt(setting, setting.common_budget(first, second), first, second)
    tables = [np.stack([row[task] for row in rows]) for task in rows[0]]
    if sum(table.shape[1] for table in tables) < MIN_ITEMS:
        raise TooThin(f"fewer than {MIN_ITEMS} items of forgetting")
    bounded = setting.base_scores(FORGETTING).bounded
    points = [1 / len(tables) if task in bounded else 0.0 for task in rows[0]]
    low, high = (float(np.mean(ends)) for ends in zip(*ranges, strict=True))
    return EqualLearning(crossed(tables, points), (low, high))


def _points_of(setting: Setting, arm: Kind) -> dict[int, _Points]:
    """Every point of an arm by seed; those that lack a measure are left out."""
    base = {m: setting.base_scores(m) for m in (LEARNING, FORGETTING)}
    learnt: dict[int, list[NDArray[Any]]] = {}
    kept: dict[int, list[Mapping[str, NDArray[Any]]]] = {}
    listed = setting.evidence.rates(arm.name)
    for (rate, _), by_seed in setting.configurations(arm).items():
        if rate not in listed:
            continue  # trained by hand: nobody may add points to one arm's front alone
        results = {s: p.results for s, p in by_seed.items()}
        sides = [_scores(setting, results, m, arm) for m in (LEARNING, FORGETTING)]
        if sides[0] is None or sides[1] is None:
            continue
        for seed in set(sides[0].seeds) & set(sides[1].seeds):
            gain = _against_base(sides[0], base[LEARNING], seed)
            learnt.setdefault(seed, []).append(_halves(gain))
            lost = _against_base(sides[1], base[FORGETTING], seed)
            kept.setdefault(seed, []).append({task: -own for task, own in lost.items()})
    found = {}
    for seed, gains in learnt.items():
        items = {task: np.stack([own[task] for own in kept[seed]]) for task in kept[seed][0]}
        forgot = np.stack([_halves(own) for own in kept[seed]], axis=1)
        found[seed] = _Points(np.stack(gains, axis=1), forgot, items)
    return found


def _scores(
    setting: Setting, results: Mapping[int, Mapping[str, TaskResult]], measure: str, arm: Kind
) -> Scores | None:
    try:
        return setting.scores(results, measure, arm.name)
    except TooThin:
        return None


def _against_base(own: Scores, base: Scores, seed: int) -> dict[str, NDArray[Any]]:
    """Task to every item's gain over the base, weighted so that the sum of means is the mean."""
    if own.items != base.items:
        raise TooThin("an arm and the base were measured on different items; measure both anew")
    share = 1 / len(own.tables)
    place = own.seeds.index(seed)
    return {t: share * (table[place] - base.tables[t][0]) for t, table in own.tables.items()}


def _halves(own: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The sum of the tasks' means over the even and over the odd items; shape (2,)."""
    return np.array([sum(float(v[half::2].mean()) for v in own.values()) for half in (0, 1)])


def _difference(
    first: _Points, second: _Points, words: str
) -> tuple[dict[str, NDArray[Any]], tuple[float, float]] | None:
    """Task to what each item adds to the difference of the fronts of one seed, and the range.

    None where the two share no level of learning above the base's.
    """
    counts = [side.learnt.shape[1] for side in (first, second)]
    subsets = _subsets(counts, words)
    weights, ranges = [], []
    for half in (0, 1):
        found = [_chosen(first, second, half, masks) for masks in zip(*subsets, strict=True)]
        whole = [one for one in found if one is not None]
        if not whole:
            return None
        weights.append((np.mean([one[0] for one in whole], axis=0),
                        np.mean([one[1] for one in whole], axis=0)))  # fmt: skip
        ranges += [one[2] for one in whole]
    tables = {}
    for task in first.items:
        row = np.zeros(first.items[task].shape[1])
        for half in (0, 1):
            # Chosen on one half, measured on the other.
            other = slice(1 - half, None, 2)
            row[other] = (
                weights[half][0] @ first.items[task][:, other]
                - weights[half][1] @ second.items[task][:, other]
            )
        tables[task] = row
    low, high = (float(np.mean(ends)) for ends in zip(*ranges, strict=True))
    return tables, (low, high)


def _subsets(counts: list[int], words: str) -> list[list[NDArray[Any]]]:
    """For each arm the places of the points of each comparison: equally many of both."""
    least = min(counts)
    if counts[0] == counts[1]:
        return [[np.arange(least)], [np.arange(least)]]
    draw = np.random.default_rng(zlib.crc32(words.encode()))
    return [
        [draw.choice(n, least, replace=False) if n > least else np.arange(n)
         for _ in range(SUBSETS)]
        for n in counts
    ]  # fmt: skip


def _chosen(
    first: _Points, second: _Points, half: int, places: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float]] | None:
    """How often each point of either arm is its front's, over the levels both reach.

    Returns:
        Weights of the first arm's points and of the second's, each summing to 1, and the range
        of levels; None where there is no common level above 0.
    """
    learnt = [side.learnt[half][own] for side, own in zip((first, second), places, strict=True)]
    low = max(0.0, *(float(own.min()) for own in learnt))
    high = min(float(own.max()) for own in learnt)
    if high <= low and not (high == low > 0):
        return None
    levels = low + (high - low) * (np.arange(LEVELS) + 0.5) / LEVELS
    weights = []
    for side, own, gains in zip((first, second), places, learnt, strict=True):
        reached = gains[:, None] >= levels
        lost = np.where(reached, side.forgot[half][own][:, None], np.inf)
        chosen = np.bincount(own[lost.argmin(axis=0)], minlength=side.learnt.shape[1])
        weights.append(chosen / LEVELS)
    return weights[0], weights[1], (low, high)
