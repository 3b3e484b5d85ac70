"""Learning against forgetting: the front, forgetting at equal learning, the area. No torch.

Words. `learnt` is the learning task's score turned so that higher is better. `forgotten`
is how much worse the source scores are than the base's, so that higher is worse; 0 for
the base, below 0 where something was gained. A *cell* is one arm at one learning rate
and one budget, averaged over its seeds.

Shapes: B draws of the bootstrap, the first as measured.

Source: axes and curves of Biderman et al. 2024, arXiv:2405.09673, figure 3. That whole
sweeps over the rate are compared, not single points: Lin et al. 2025, arXiv:2509.20758.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laura.analysis.resampling import Array, quantiles

# Shares of the range of learning that both arms cover. Not its end: noise decides
# there whether an arm reaches it at all.
LEVELS = (0.5, 0.75, 0.9)
REACHED = 0.9  # of the draws, for an interval
ROUNDING = 1e-9  # a smaller range of scores is none
GRID = "least forgetting over the arm's rates and budgets, interpolated between neighbours"
BEST_RATE = "at the arm's best rate, interpolated between its budgets"


@dataclass(frozen=True)
class Cell:
    """An arm at one rate and budget.

    Attributes:
        learning_rate: The rate.
        budget: Tokens or epochs.
        seeds: How many seeds it is the mean of.
        learnt: (B,), higher is better.
        forgotten: (B,), higher is worse.
    """

    learning_rate: float
    budget: float
    seeds: int
    learnt: Array
    forgotten: Array


@dataclass(frozen=True)
class Matched:
    """Two arms at one level of learning.

    Attributes:
        level: What both learnt.
        forgotten: What each forgot there.
        difference: First minus second; above 0, the first forgets more.
        interval: Percentile interval over items and seeds; None where fewer than
            `REACHED` of the draws have the level in both arms.
        reached: Share of the draws that have it.
        seeds: The fewest seeds of the cells that were interpolated between.
    """

    level: float
    forgotten: tuple[float, float]
    difference: float
    interval: tuple[float, float] | None
    reached: float
    seeds: int


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


def edges(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Neighbours on an arm's grid: the next budget at one rate, the next rate at one budget."""
    found: list[tuple[Cell, Cell]] = []
    for first, second in (("learning_rate", "budget"), ("budget", "learning_rate")):
        lines: dict[float, list[Cell]] = {}
        for cell in cells:
            lines.setdefault(getattr(cell, first), []).append(cell)
        for line in lines.values():
            line.sort(key=lambda cell, name=second: getattr(cell, name))  # type: ignore[misc]
            found += itertools.pairwise(line)
    return found


def forgotten_at(level: float, pairs: Sequence[tuple[Cell, Cell]]) -> Array:
    """What an arm forgets where it has learnt `level`, (B,); infinite where it never has.

    Formula: over all pairs of neighbours whose learning lies on both sides of the level,
    f_u + (f_v - f_u) (level - l_u) / (l_v - l_u); the smallest. The smallest of several
    noisy numbers is a little too small, for every arm that has several pairs there.
    """
    return np.asarray(_crossings(level, pairs).min(axis=0))


def match(
    first: Sequence[Cell], second: Sequence[Cell], levels: Sequence[float] = LEVELS
) -> list[Matched]:
    """Two arms at equal levels of learning, within the range that both cover.

    Args:
        first: Cells of an arm; a curve needs two neighbours.
        second: Cells of the other, of the same draws.
        levels: Shares of the common range.

    Returns:
        One a level, rising; empty where an arm has no curve or no level is in both.
    """
    sides = [edges(first), edges(second)]
    if not all(sides):
        return []
    spans = [[cell.learnt[0] for pair in pairs for cell in pair] for pairs in sides]
    low, high = max(map(min, spans)), min(map(max, spans))
    if high - low <= ROUNDING:
        return []
    return [_match_at(float(low + share * (high - low)), sides[0], sides[1]) for share in levels]


def area(cells: Sequence[Cell], base: Array, most: tuple[float, float]) -> Array:
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


def areas(arms: Mapping[str, Sequence[Cell]], base: Array) -> dict[str, dict[str, Any]]:
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
            interval = list(quantiles(values[1:]))
            seeds = min(cell.seeds for cell in own)
            found[name] = {"value": float(values[0]), "interval": interval, "seeds": seeds}
    return found


def _match_at(
    level: float, first: list[tuple[Cell, Cell]], second: list[tuple[Cell, Cell]]
) -> Matched:
    sides = [_crossings(level, pairs) for pairs in (first, second)]
    seeds = []
    for pairs, found in zip((first, second), sides, strict=True):
        used = pairs[int(found[:, 0].argmin())]
        seeds.append(min(cell.seeds for cell in used))
    a, b = (found.min(axis=0) for found in sides)
    both = np.isfinite(a[1:]) & np.isfinite(b[1:])
    reached = float(both.mean())
    ends = quantiles((a[1:] - b[1:])[both]) if reached >= REACHED else None
    values = float(a[0]), float(b[0])
    return Matched(level, values, values[0] - values[1], ends, reached, min(seeds))


def _crossings(level: float, pairs: Sequence[tuple[Cell, Cell]]) -> Array:
    """Forgetting at the level between every pair of neighbours, (pairs, B), else infinite."""
    found = np.full((len(pairs), len(pairs[0][0].learnt)), np.inf)
    for place, (u, v) in enumerate(pairs):
        span = v.learnt - u.learnt
        crosses = (u.learnt - level) * (v.learnt - level) <= 0
        flat = span == 0
        share = np.where(flat, 0.0, (level - u.learnt) / np.where(flat, 1.0, span))
        between = u.forgotten + (v.forgotten - u.forgotten) * share
        value = np.where(flat, np.minimum(u.forgotten, v.forgotten), between)
        found[place] = np.where(crosses, value, np.inf)
    return found
