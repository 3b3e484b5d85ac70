"""Learning against forgetting: the front and the area. No torch.

Words. `learnt` is the learning task's score turned so that higher is better. `forgotten`
is how much worse the source scores are than the base's, so that higher is worse; 0 for
the base, below 0 where something was gained. A *cell* is one arm at one learning rate
and one budget, averaged over its seeds.

Shapes: B draws of the bootstrap, the first as measured.

Source: axes and curves of Biderman et al. 2024, arXiv:2405.09673, figure 3. That whole
sweeps over the rate are compared, not single points: Lin et al. 2025, arXiv:2509.20758.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laura.analysis.resampling import Array, quantiles
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
