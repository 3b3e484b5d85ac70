"""Seeds taken together: points of one arm and budget as one estimate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from laura.report import formats
from laura.results.schema import PointRow, Summary
from laura.results.statistics import Estimate, over_seeds


@dataclass(frozen=True)
class Group:
    """The seeds of one arm at one budget: at one rate, or each at its own best."""

    summary: Summary
    arm: str
    budget: float
    points: tuple[PointRow, ...]

    @property
    def learning_rate(self) -> float:
        """The rate of a group at one rate; the first seed's where they differ."""
        return self.points[0].learning_rate

    @property
    def rate(self) -> str:
        """The rate in words, or the rates where seeds differ."""
        return formats.rates([point.learning_rate for point in self.points])

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
        return self._over_seeds(lambda point: point.scores.get(name))

    def change(self, name: str) -> Estimate | None:
        """Tuned minus base over the seeds that have it."""
        return self._over_seeds(lambda point: self.summary.change(point, name))

    def _over_seeds(self, read: Callable[[PointRow], Estimate | None]) -> Estimate | None:
        found = [estimate for estimate in map(read, self.points) if estimate is not None]
        return over_seeds(found) if found else None


def groups(
    summary: Summary, wanted: Callable[[PointRow], bool] = lambda point: True
) -> list[Group]:
    """Points that are wanted by arm, rate and budget; ordered as the arms, then by these."""
    return _grouped(summary, wanted, lambda point: point.learning_rate)


def _grouped(
    summary: Summary, wanted: Callable[[PointRow], bool], rate: Callable[[PointRow], float]
) -> list[Group]:
    order = {arm.name: place for place, arm in enumerate(summary.arms)}
    found: dict[tuple[str, float, float], list[PointRow]] = {}
    for point in summary.points:
        if wanted(point):
            found.setdefault((point.arm, rate(point), point.budget), []).append(point)
    keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), key))
    return [Group(summary, arm, budget, tuple(found[arm, at, budget])) for arm, at, budget in keys]


def selected_groups(summary: Summary) -> list[Group]:
    """Every arm with each seed at its best learning rate, one group a budget."""
    return _grouped(summary, lambda point: point.selected, lambda point: 0.0)


def final_groups(summary: Summary) -> list[Group]:
    """Every arm at its best learning rate and the largest budget it reached."""
    last = {group.arm: group for group in selected_groups(summary)}
    return list(last.values())
