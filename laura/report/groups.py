"""Seeds taken together: the points of one arm, rate and budget as one estimate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from laura.report.reading import Point, Summary
from laura.results.statistics import Estimate, over_seeds


@dataclass(frozen=True)
class Group:
    """The seeds of one arm at one learning rate and one budget."""

    summary: Summary
    arm: str
    learning_rate: float
    budget: float
    points: tuple[Point, ...]

    @property
    def tokens(self) -> float:
        """Tokens trained on, the mean over seeds."""
        return math.fsum(point.tokens for point in self.points) / len(self.points)

    @property
    def seeds(self) -> list[int]:
        """Seeds, rising."""
        return sorted({point.seed for point in self.points})

    @property
    def runs(self) -> list[str]:
        """IDs of the runs, in the order of their seeds."""
        return [point.run for point in sorted(self.points, key=lambda point: point.seed)]

    def value(self, name: str) -> Estimate | None:
        """Score over the seeds that have one."""
        return self._over_seeds(lambda point: point.value(name))

    def change(self, name: str) -> Estimate | None:
        """Tuned minus base over the seeds that have it."""
        return self._over_seeds(lambda point: self.summary.change(point, name))

    def _over_seeds(self, read: Callable[[Point], Estimate | None]) -> Estimate | None:
        found = [estimate for estimate in map(read, self.points) if estimate is not None]
        return over_seeds(found) if found else None


def groups(summary: Summary, wanted: Callable[[Point], bool] = lambda point: True) -> list[Group]:
    """Points that are wanted, grouped; ordered as the arms are, then by rate and budget."""
    order = {arm.name: place for place, arm in enumerate(summary.arms)}
    found: dict[tuple[str, float, float], list[Point]] = {}
    for point in summary.points:
        if wanted(point):
            found.setdefault((point.arm, point.learning_rate, point.budget), []).append(point)
    keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), key))
    return [Group(summary, *key, tuple(found[key])) for key in keys]


def selected_groups(summary: Summary) -> list[Group]:
    """Every arm at its best learning rate, one group a budget."""
    return groups(summary, lambda point: point.selected)


def final_groups(summary: Summary) -> list[Group]:
    """Every arm at its best learning rate and the largest budget it reached."""
    last = {group.arm: group for group in selected_groups(summary)}
    return list(last.values())
