"""Effects with an error over items and an error over seeds. No torch.

A study asks every seed the same items, so seeds and items are crossed: a difference
d_si (seed s, item i) is mu + u_s + v_i + e_si. Its mean over k seeds and n items has
variance var_u / k + var_v / n + var_e / (k n), which is estimated by

    S_seeds^2 / k + S_items^2 / n

with S_seeds^2 the variance of the seeds' means and S_items^2 that of the items' means.
The sum holds var_e / (k n) twice: it is too large rather than too small. Degrees of
freedom are Satterthwaite's over the two parts, so that three seeds that differ give the
wide interval of a t with two degrees.

Where scores are shares, two pseudo-items are added to the variance over items, one better
and one worse by a whole point (Bonett and Price): otherwise 60 items that all came out
alike would say that nothing can ever differ.

Sources: Welch 1947 and Satterthwaite 1946 for the degrees of freedom; Miller 2024,
arXiv:2411.00640, for pairing by item; Bonett and Price 2012, Adjusted Wald confidence
interval for a difference of binomial proportions based on paired data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from laura.results.statistics import mean, quantile, upper_tail
from laura.results.task_result import RATIO_FIELDS, TaskResult

LEVEL = 0.95
ALPHA = 0.05  # 1 - LEVEL, without its rounding
MIN_SEEDS = 3
MIN_ITEMS = 50


class TooThin(Exception):
    """The data cannot carry a judgement; the message says why, in plain words."""


@dataclass(frozen=True)
class Part:
    """One independent source of error.

    Attributes:
        source: `seeds`, `items`, or `grid` (a value known only to the step of a list).
        variance: Its share of the variance of the effect.
        freedom: Degrees of freedom of that estimate.
    """

    source: str
    variance: float
    freedom: float


@dataclass(frozen=True)
class Effect:
    """A number computed from several seeds, with its sources of error.

    Attributes:
        value: The number.
        parts: Sources of error; none means that nothing varied.
        n: Items it was computed from (questions, documents, prompts or matrices).
        seeds: Seeds.
    """

    value: float
    parts: tuple[Part, ...]
    n: int
    seeds: int

    @property
    def stderr(self) -> float:
        """Standard error of all sources together."""
        return math.sqrt(math.fsum(part.variance for part in self.parts))

    @property
    def freedom(self) -> float:
        """Satterthwaite's degrees of freedom: (sum v)^2 / sum (v^2 / f)."""
        total = math.fsum(part.variance for part in self.parts)
        below = math.fsum(part.variance**2 / part.freedom for part in self.parts)
        return total**2 / below if below > 0 else math.inf

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Both ends of Student's interval at a level such as 0.95."""
        reach = quantile((1 + level) / 2, self.freedom) * self.stderr
        return self.value - reach, self.value + reach

    def chance_below(self, threshold: float) -> float:
        """One-sided p: how likely so high a value is if the truth were at the threshold."""
        distance = self.value - threshold
        if self.stderr == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        return upper_tail(distance / self.stderr, self.freedom)

    def scaled(self, factor: float) -> Effect:
        """The effect in another unit, or turned round."""
        parts = [Part(p.source, p.variance * factor**2, p.freedom) for p in self.parts]
        return Effect(self.value * factor, tuple(parts), self.n, self.seeds)

    def with_grid(self, steps: Iterable[float]) -> Effect:
        """With the error of values read off lists: step^2 / 12 each, however many seeds agree."""
        variance = math.fsum(step * step / 12 for step in steps)
        part = Part("grid", variance, math.inf)
        return Effect(self.value, (*self.parts, part), self.n, self.seeds)


@dataclass(frozen=True)
class Term:
    """One score of a contrast: its weight, and its results by seed and task.

    Attributes:
        weight: What the score is multiplied with.
        results: Seed to (task to result); tasks of one measure, whose mean is the score.
        signs: Task to (metric, +1 where higher is better, else -1).
        place: Where it was measured; items of one task in one place are paired.
    """

    weight: float
    results: Mapping[int, Mapping[str, TaskResult]]
    signs: Mapping[str, tuple[str, float]]
    place: str = ""


def contrast(terms: Sequence[Term], least_seeds: int = MIN_SEEDS) -> Effect:
    """A weighted sum of scores, paired by seed and by item.

    Args:
        terms: At least one. Seeds that all of them have are used. A base, which has no
            seed, is given under every seed.
        least_seeds: Common seeds needed, two at least.

    Returns:
        The sum with its error over seeds and, task by task, over items (module's docstring).

    Raises:
        TooThin: too few common seeds, fewer than 50 items in all, or items differ.
    """
    seeds = sorted(set.intersection(*(set(term.results) for term in terms)))
    if len(seeds) < least_seeds:
        few = count(len(seeds), "seed")
        raise TooThin(f"{few} measured for everything compared; {least_seeds} are needed")
    by_item: dict[tuple[str, str], dict[int, float]] = {}
    whole_points: dict[tuple[str, str], float] = {}
    values = [0.0] * len(seeds)
    for term in terms:
        share = term.weight / len(term.signs)
        for task, (metric, sign) in term.signs.items():
            tables = [linearised(term.results[seed][task], metric) for seed in seeds]
            key = (term.place, task)
            # Bounded scores only: what one whole point of an item is worth in the sum.
            bounded = all(0 <= v <= 1 for table in tables for v in table.values())
            point = abs(share) if bounded and metric not in RATIO_FIELDS else 0.0
            whole_points[key] = max(whole_points.get(key, 0.0), point)
            known = by_item.setdefault(key, dict.fromkeys(tables[0], 0.0))
            for place, table in enumerate(tables):
                if table.keys() != known.keys():
                    raise TooThin(
                        f"{task} was measured on different items; measure both on the same"
                    )
                values[place] += share * sign * math.fsum(table.values()) / len(table)
                for index, value in table.items():
                    known[index] += share * sign * value / len(seeds)
    n = sum(len(items) for items in by_item.values())
    if n < MIN_ITEMS or min(len(items) for items in by_item.values()) < 2:
        raise TooThin(f"{count(n, 'item')} measured; {MIN_ITEMS} are needed")
    parts = [_spread(values, "seeds")]
    parts += [_over_items(list(own.values()), whole_points[key]) for key, own in by_item.items()]
    return Effect(math.fsum(values) / len(seeds), tuple(parts), n, len(seeds))


def linearised(result: TaskResult, metric: str) -> dict[int, float]:
    """Values an item whose mean is the score and whose spread gives its error.

    A ratio R = sum x / sum t becomes R + (x_i - R t_i) / mean t (Cochran 1977, 6.4); a mean
    is its items.
    """
    if metric not in RATIO_FIELDS:
        return result.values(metric)
    sums = result.sums(metric)
    below = math.fsum(bottom for _, bottom in sums.values())
    ratio = math.fsum(top for top, _ in sums.values()) / below
    average = below / len(sums)
    return {i: ratio + (top - ratio * bottom) / average for i, (top, bottom) in sums.items()}


def over_seeds(values: Sequence[float], n: int, item_variance: float = 0.0) -> Effect:
    """Effect of numbers that are known once a seed, such as ranks of updates.

    Args:
        values: One a seed.
        n: What each was computed from.
        item_variance: Variance of the mean that comes from the items, where it is known.

    Raises:
        TooThin: fewer than three seeds.
    """
    if len(values) < MIN_SEEDS:
        raise TooThin(f"{count(len(values), 'seed')} to judge by; {MIN_SEEDS} are needed")
    parts = [_spread(values, "seeds")]
    if item_variance > 0:
        parts.append(Part("items", item_variance, max(1, n - 1)))
    return Effect(math.fsum(values) / len(values), tuple(parts), n, len(values))


def mean_effect(effects: Sequence[Effect], shared_runs: bool = False) -> Effect:
    """Plain mean of one effect in several settings, each weighing the same.

    It speaks of these settings, not of others. Their runs are independent, so errors over
    seeds add as squares; items may be the same ones (the same HellaSwag), so errors over
    items are added as if wholly correlated, which is too much rather than too little.

    Args:
        effects: At least one.
        shared_runs: Whether effects may hold the same runs (pairs of settings that have one
            in common); then errors over seeds are added like those over items.
    """
    correlated = ("items", "seeds") if shared_runs else ("items",)
    m = len(effects)
    parts: list[Part] = []
    for source in ("seeds", "grid", "items"):
        found = [
            (math.fsum(own), min(p.freedom for p in e.parts if p.source == source))
            for e in effects
            if (own := [p.variance for p in e.parts if p.source == source])
        ]
        if source in correlated and found:
            total = math.fsum(math.sqrt(v) for v, _ in found) ** 2
            parts.append(Part(source, total / m**2, min(f for _, f in found)))
        else:
            parts += [Part(source, v / m**2, f) for v, f in found]
    value = math.fsum(e.value for e in effects) / m
    return Effect(value, tuple(parts), sum(e.n for e in effects), min(e.seeds for e in effects))


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _over_items(values: Sequence[float], point: float) -> Part:
    """Part of the items' error; with pseudo-items worth +point and -point where it is above 0."""
    if not point:
        return _spread(values, "items")
    n = len(values) + 2
    squares = math.fsum(value * value for value in values) + 2 * point * point
    variance = (squares / n - (math.fsum(values) / n) ** 2) / n
    return Part("items", variance, len(values) - 1)


def _spread(values: Sequence[float], source: str) -> Part:
    return Part(source, mean(values).stderr ** 2, len(values) - 1)
