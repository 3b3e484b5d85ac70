"""The one judge's arithmetic: standard errors, paired comparisons, Student's t, bootstrap.

Every score here is computed over items (questions or documents). Two models
measured on the same items are compared item by item, which removes the noise
of how hard the items are; that is why every change is paired. Where several
samples share an item, the item stays the unit: samples of one question are
not independent.

No torch. Intervals by resampling ask for no formula and show where an error is
lopsided; items are drawn together on both models, so that the pairing stays.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORMAL_FROM = 1e6  # degrees of freedom beyond which t is the normal to every printed digit
_STEPS, _TINY = 300, 1e-300
DRAWS = 10_000
LEVEL = 0.95
_BLOCK = 1_000_000  # counts drawn at a time, about 8 MB: ten thousand items need no gigabytes


@dataclass(frozen=True)
class Estimate:
    """A measured number and how sure we are of it.

    Attributes:
        value: The number.
        stderr: Its standard error, in the same unit.
        n: Items (questions or documents) it was computed from.
    """

    value: float
    stderr: float
    n: int


def mean(values: Sequence[float]) -> Estimate:
    """Mean of independent items, with the standard error of that mean.

    Formula: s / sqrt(n) with s^2 = sum (x - mean)^2 / (n - 1).

    Args:
        values: One finite number an item; shares are 0 or 1 an item.

    Raises:
        ValueError: fewer than two items (the error is undefined), or a value
            that is not finite.

    Source:
        `mean_stderr` of lm-eval 0.4.13 (lm_eval/api/metrics.py).
    """
    numbers = finite_numbers(values, "values")
    n = at_least_two(numbers)
    average = math.fsum(numbers) / n
    variance = math.fsum((x - average) ** 2 for x in numbers) / (n - 1)
    return Estimate(average, math.sqrt(variance / n), n)


def paired_difference(before: Mapping[int, float], after: Mapping[int, float]) -> Estimate:
    """Mean of `after - before` over the same items, with its standard error.

    Formula: the one-sample standard error of d_i = after_i - before_i, that is
    sd(d) / sqrt(n), as in a paired t-test.

    Args:
        before: Item index to value, on the base.
        after: The same indices on the tuned model.

    Raises:
        ValueError: the two cover different items, or fewer than two.

    Source:
        Student's paired test; for language models Miller 2024,
        arXiv:2411.00640 (paired differences).
    """
    indices = same_items(before, after)
    return mean([after[index] - before[index] for index in indices])


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two sums over documents, with a standard error clustered by document.

    Held-out loss is sum of nats / sum of tokens. Tokens of one document are not
    independent, so the document is the unit.

    Formula: R = sum x / sum d; with residuals e_i = x_i - R d_i,
    variance = n / (n - 1) * sum e_i^2 / (sum d)^2 (delta method).

    Args:
        numerators: One an item, such as nats.
        denominators: One an item, such as tokens; their sum is above zero.

    Raises:
        ValueError: unequal lengths, fewer than two items, a value that is not
            finite, a negative denominator, or denominators that sum to zero.

    Source:
        Cochran 1977, Sampling Techniques, section 6.4, without the correction
        for a finite population. With equal denominators this is `mean`.
    """
    value, residuals, total = _ratio_residuals(numerators, denominators)
    n = len(residuals)
    variance = n / (n - 1) * math.fsum(e * e for e in residuals) / total**2
    return Estimate(value, math.sqrt(variance), n)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of values that come in clusters, such as several samples of one question.

    Formula: the plain mean m of all n values; with e_g the sum of x - m over
    cluster g, one of G, variance = G / (G - 1) * sum e_g^2 / n^2. That is `ratio`
    of the clusters' sums to their sizes. With clusters of one value it is `mean`;
    with clusters of one size it is `mean` of the clusters' means.

    Args:
        values: One finite number a sample.
        clusters: What each sample belongs to, such as the index of its question.

    Returns:
        The mean and its standard error; `n` counts clusters, not values.

    Raises:
        ValueError: unequal lengths, fewer than two clusters, or a value that is
            not finite.

    Source:
        Miller 2024, arXiv:2411.00640, clustered standard errors: the root of
        sum e_g^2 / n^2. The factor G / (G - 1) is ours, as in `mean`, whose
        n - 1 it becomes when every cluster holds one value.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters; give one each")
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(finite_numbers(values, "values"), clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    groups = list(members.values())
    return ratio([math.fsum(group) for group in groups], [len(group) for group in groups])


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples of a problem passes, unbiased.

    Formula: 1 - C(n - c, k) / C(n, k): of all choices of k among the n samples
    drawn, the share that holds one of the c that pass. Computed in whole numbers
    and rounded once, so nothing cancels. pass@k of a benchmark is `mean` of this
    over its problems, and so is its standard error: the problem is the unit,
    however many samples it has.

    Args:
        n: Samples of the problem.
        c: How many of them pass, 0 to n.
        k: How many may be handed in, 1 to n.

    Raises:
        ValueError: a number out of its range.

    Source:
        Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples, there are {n} samples")
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot pass")
    ways = math.comb(n, k)
    return (ways - math.comb(n - c, k)) / ways


def ratio_difference(
    before: Mapping[int, tuple[float, float]], after: Mapping[int, tuple[float, float]]
) -> Estimate:
    """Difference of two ratios over the same documents, paired by document.

    Formula: R_after - R_before; with the residuals e of `ratio`,
    g_i = e_after_i / D_after - e_before_i / D_before (D: sum of denominators),
    variance = n / (n - 1) * sum g_i^2. With equal denominators this is `ratio`
    of the differences.

    Args:
        before: Document index to (numerator, denominator), on the base.
        after: The same indices on the tuned model.

    Raises:
        ValueError: different documents, or what `ratio` refuses.

    Source:
        Cochran 1977, Sampling Techniques, section 6.18 (comparison of two
        ratios), by the delta method.
    """
    indices = same_items(before, after)
    sides = [
        _ratio_residuals([side[i][0] for i in indices], [side[i][1] for i in indices])
        for side in (before, after)
    ]
    (old, old_residuals, old_total), (new, new_residuals, new_total) = sides
    n = len(indices)
    influence = [
        e_new / new_total - e_old / old_total
        for e_old, e_new in zip(old_residuals, new_residuals, strict=True)
    ]
    variance = n / (n - 1) * math.fsum(g * g for g in influence)
    return Estimate(new - old, math.sqrt(variance), n)


def mean_of_tasks(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of several tasks' scores (or changes), tasks weighing the same.

    Formula: mean of the values; sqrt(sum stderr^2) / k for k tasks, whose items
    are different and therefore independent. For the change of a mean give the
    tasks' paired changes: the pairing is already inside their standard errors.

    Raises:
        ValueError: no task.

    Source:
        Forgetting score of Biderman et al. 2024, arXiv:2405.09673 (mean of
        HellaSwag, ARC-Challenge and WinoGrande); `unweighted_mean_stderr` of
        lm-eval 0.4.13 for the error.
    """
    if not estimates:
        raise ValueError("the mean of no task is undefined; give at least one")
    k = len(estimates)
    value = math.fsum(estimate.value for estimate in estimates) / k
    stderr = math.sqrt(math.fsum(estimate.stderr**2 for estimate in estimates)) / k
    return Estimate(value, stderr, sum(estimate.n for estimate in estimates))


def paired_mean_of_tasks(
    before: Mapping[str, Mapping[int, float]], after: Mapping[str, Mapping[int, float]]
) -> Estimate:
    """Change of the plain mean of several tasks' scores, paired by item.

    Args:
        before: Task to (item index to value), on the base.
        after: The same tasks and items on the tuned model.

    Raises:
        ValueError: different tasks or items, or fewer than two items in one.

    Source:
        `paired_difference` within each task, then `mean_of_tasks`.
    """
    tasks = same_tasks(before, after)
    return mean_of_tasks([paired_difference(before[task], after[task]) for task in tasks])


def seed_error(values: Sequence[float]) -> float:
    """Standard error of a mean over seeds, the items held fixed; 0 with one seed.

    Formula: s / sqrt(k) for k seeds with spread s between them. One seed says
    nothing about the luck of the seed, so it adds nothing here.
    """
    return mean(values).stderr if len(values) > 1 else 0.0


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of several seeds measured on the same items, with its standard error.

    Formula: sqrt(mean of stderr_i^2 + seed_error^2). The items are the same for
    every seed, so more seeds do not shrink their share of the error. Some noise
    of single items is counted in both terms: the result is too large rather
    than too small. One seed keeps the error over items.

    Args:
        estimates: One a seed; at least one.

    Returns:
        The mean, its standard error, and the smallest n.
    """
    k = len(estimates)
    values = [estimate.value for estimate in estimates]
    over_items = math.fsum(estimate.stderr**2 for estimate in estimates) / k
    stderr = math.sqrt(over_items + seed_error(values) ** 2)
    return Estimate(math.fsum(values) / k, stderr, min(e.n for e in estimates))


def finite_numbers(values: Iterable[float], name: str) -> list[float]:
    """The values as floats.

    Raises:
        ValueError: one is not finite; `name` says which list it stood in.
    """
    numbers = [float(value) for value in values]
    for place, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"{name}[{place}] is {number}; every item needs a finite number")
    return numbers


def at_least_two(items: Sequence[object]) -> int:
    """How many items there are.

    Raises:
        ValueError: fewer than two, which have no standard error.
    """
    if len(items) < 2:
        raise ValueError(
            f"a standard error needs at least 2 items, came {len(items)}; measure more items"
        )
    return len(items)


def same_tasks(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """The tasks that both cover, in the order of `before`.

    Raises:
        ValueError: the two cover different tasks.
    """
    if set(before) != set(after):
        raise ValueError(
            f"the two models were measured on different tasks: {sorted(before)} "
            f"and {sorted(after)}; measure both on the same"
        )
    return list(before)


def same_items(before: Mapping[int, object], after: Mapping[int, object]) -> list[int]:
    """The indices that both cover, in order.

    Raises:
        ValueError: the two cover different items.
    """
    if before.keys() != after.keys():
        raise ValueError(
            f"the two models were measured on different items ({len(before)} and {len(after)}, "
            f"{len(before.keys() & after.keys())} in common); measure both on the same"
        )
    return sorted(before)


def _ratio_residuals(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, list[float], float]:
    """Ratio of the sums, residuals x - R d, and the sum of the denominators."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators but {len(denominators)} denominators")
    tops = finite_numbers(numerators, "numerators")
    bottoms = finite_numbers(denominators, "denominators")
    at_least_two(tops)
    if min(bottoms) < 0 or math.fsum(bottoms) <= 0:
        raise ValueError("denominators must not be negative and must sum to more than zero")
    total = math.fsum(bottoms)
    value = math.fsum(tops) / total
    return value, [x - value * d for x, d in zip(tops, bottoms, strict=True)], total


def upper_tail(t: float, freedom: float) -> float:
    """Chance that Student's t exceeds a value.

    Formula: I_x(f / 2, 1 / 2) / 2 for t >= 0 with x = f / (f + t^2), and 1 minus that of
    -t below 0; I is the regularised incomplete beta function.

    Args:
        t: The value; infinities give 0 and 1.
        freedom: Degrees of freedom, above 0; need not be whole; infinity is the normal.

    Raises:
        ValueError: freedom is not above 0, or t is not a number.

    Source:
        Abramowitz and Stegun 1964, 26.7.1.
    """
    if not freedom > 0 or math.isnan(t):
        raise ValueError(f"t={t} with {freedom} degrees of freedom has no tail")
    if t < 0:
        return 1.0 - upper_tail(-t, freedom)
    if math.isinf(t):
        return 0.0
    if freedom >= NORMAL_FROM:
        return NormalDist().cdf(-t)
    return 0.5 * _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def quantile(share: float, freedom: float) -> float:
    """The value that Student's t stays below with a chance.

    Args:
        share: Chance in (0, 1).
        freedom: Degrees of freedom, above 0.

    Raises:
        ValueError: share is outside (0, 1), or freedom is not above 0.
    """
    if not 0 < share < 1:
        raise ValueError(f"a quantile needs a share between 0 and 1, came {share}")
    if not freedom > 0:
        raise ValueError(f"Student's t with {freedom} degrees of freedom has no quantile")
    if share < 0.5:
        return -_at_tail(share, freedom)
    return _at_tail(1 - share, freedom)


def _at_tail(tail: float, freedom: float) -> float:
    """The value that Student's t exceeds with a chance of one half at most.

    Newton's steps on the logarithm of the tail, kept within what is known to hold it.
    """
    if tail >= 0.5:
        return 0.0
    if freedom >= NORMAL_FROM:
        return NormalDist().inv_cdf(1 - tail) if tail > 1e-9 else -NormalDist().inv_cdf(tail)
    half = freedom / 2
    scale = math.lgamma(half + 0.5) - math.lgamma(half) - 0.5 * math.log(freedom * math.pi)
    low, high = 0.0, 1.0
    while upper_tail(high, freedom) > tail:
        low, high = high, 2 * high
    t = (low + high) / 2
    for _ in range(_STEPS):
        found = upper_tail(t, freedom)
        low, high = (t, high) if found > tail else (low, t)
        density = math.exp(scale - (half + 0.5) * math.log1p(t * t / freedom))
        step = t + math.log(found / tail) * found / density if found > 0 and density > 0 else low
        after = step if low < step < high else (low + high) / 2
        if abs(after - t) <= 1e-14 * after:
            return after
        t = after
    return t


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by Lentz's continued fraction (Press et al., Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below this
        return 1.0 - _incomplete_beta(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(front + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away(1.0 + term * d)
            c = _away(1.0 + term / c)
            total *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * total


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Share of intervals that hold the truth, such as 0.95.
    """

    low: float
    high: float
    level: float


def paired_bootstrap(
    before: Mapping[int, float],
    after: Mapping[int, float],
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of the mean of `after - before`, by resampling items.

    Formula: draw n items with replacement `draws` times; the interval runs from
    the (1 - level) / 2 to the (1 + level) / 2 quantile of the means of
    d_i = after_i - before_i. With several samples an item, give the item's mean:
    what is resampled is then the cluster.

    Args:
        before: Item index to value, on the base or on one arm.
        after: The same indices on the tuned model or the other arm.
        seed: The same seed gives the same interval.
        draws: Resamples; 10,000 settles the ends to about a hundredth of the width.
        level: Share in (0, 1), not a percentage.

    Raises:
        ValueError: different items, fewer than two, or a level outside (0, 1).

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section
        13.3; paired use as in Koehn 2004 (EMNLP).
    """
    return paired_bootstrap_of_tasks({"": before}, {"": after}, seed=seed, draws=draws, level=level)


def paired_bootstrap_of_tasks(
    before: Mapping[str, Mapping[int, float]],
    after: Mapping[str, Mapping[int, float]],
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of the change of the plain mean of several tasks' scores.

    Formula: a draw resamples the items of every task by themselves (the tasks
    are strata: their sizes and weights stay), takes each task's mean of
    d_i = after_i - before_i, and the mean of those. The interval is between
    quantiles of the draws, as in `paired_bootstrap`; its centre is
    `statistics.paired_mean_of_tasks`.

    Args:
        before: Task to (item index to value), on the base or on one arm.
        after: The same tasks and items on the tuned model or the other arm.
        seed: The same seed gives the same interval.
        draws: Resamples.
        level: Share in (0, 1), not a percentage.

    Raises:
        ValueError: no task, different tasks or items, fewer than two items in
            one, or a level outside (0, 1).

    Source:
        Stratified bootstrap: Davison and Hinkley 1997, Bootstrap Methods and
        their Application, section 3.2. The mean of tasks is the forgetting
        score of Biderman et al. 2024, arXiv:2405.09673.
    """
    import numpy as np

    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, came {level}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, came {draws}")
    tasks = same_tasks(before, after)
    if not tasks:
        raise ValueError("the mean of no task is undefined; give at least one")
    changes = [_differences(before[task], after[task]) for task in tasks]
    generator = np.random.default_rng(seed)
    means = sum(_resampled_means(own, draws, generator) for own in changes) / len(changes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _differences(before: Mapping[int, float], after: Mapping[int, float]) -> list[float]:
    indices = same_items(before, after)
    at_least_two(indices)
    return finite_numbers([after[i] - before[i] for i in indices], "differences")


def _resampled_means(values: Sequence[float], draws: int, generator: Any) -> NDArray[Any]:
    """Mean of every resample, shape (draws,).

    How often each item is drawn is multinomial. Items of one value are drawn as one:
    differences of right and wrong take three values, however many items there are.
    """
    import numpy as np

    distinct, counts = np.unique(np.array(values), return_counts=True)
    n = len(values)
    block = max(1, _BLOCK // len(distinct))
    sizes = [min(block, draws - start) for start in range(0, draws, block)]
    # Multiplied and summed row by row: a matrix product would round by the block's size.
    return np.concatenate(
        [(generator.multinomial(n, counts / n, size) * distinct).sum(axis=1) / n for size in sizes]
    )


# ----- contrasts: seeds and items crossed -----

ALPHA = 0.05  # 1 - LEVEL, without its rounding
MARGIN = 0.02  # two scores, as shares, are the same if they differ by no more
MIN_SEEDS = 3
MIN_ITEMS = 50
_RULE_OF_THREE = 1.5  # whole points that items which all came out alike may yet hide


class TooThin(Exception):
    """The data cannot carry a judgement; the message says why, in plain words."""


@dataclass(frozen=True)
class Variance:
    """One source of error of a contrast.

    Attributes:
        source: `seeds`, `items`, or `grid` (a value known only to the step of a list).
        variance: Its share of the variance of the contrast.
        freedom: Degrees of freedom of that estimate; infinite where it is as good as known.
    """

    source: str
    variance: float
    freedom: float


@dataclass(frozen=True)
class Contrast:
    """A difference, or another sum of scores, with its sources of error.

    The interval is value ± sqrt(sum over sources of t_f² v): Student's quantile of each
    source by itself. Over seeds v is S_seeds² / k with k - 1 degrees of freedom, over items
    what is left of S_items² / n once the part is taken off that the seeds hold already (the
    residual of the crossed table), with the normal's quantile. It covers at least its level
    however the variance is divided; Satterthwaite's rule falls to 91 % with three seeds that
    differ (`docs/evidence/calibration`).

    Attributes:
        value: The sum.
        parts: Sources of error; none means that nothing varied.
        n: Items it was computed from (questions, documents, prompts or matrices).
        seeds: Seeds.

    Source:
        Banerjee 1960, Approximate confidence interval for linear functions of means of k
        populations when the population variances are not equal, Sankhyā 22; crossed random
        effects: Miller 2024, arXiv:2411.00640, for pairing by item.
    """

    value: float
    parts: tuple[Variance, ...]
    n: int
    seeds: int

    @property
    def stderr(self) -> float:
        """Standard error of all sources together."""
        return math.sqrt(math.fsum(part.variance for part in self.parts))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Both ends of the interval at a level such as 0.95."""
        reach = self.reach(level)
        return self.value - reach, self.value + reach

    def reach(self, level: float = LEVEL) -> float:
        """Half of the interval's width at a level."""
        share = (1 + level) / 2
        return math.sqrt(
            math.fsum(cached_quantile(share, freedom) ** 2 * v for v, freedom in self._sources())
        )

    def chance_below(self, threshold: float) -> float:
        """One-sided p: how likely so high a value is if the truth were at the threshold."""
        distance = self.value - threshold
        if self.stderr == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        tail = _tail(abs(distance), self._sources())
        return tail if distance > 0 else 1.0 - tail

    def scaled(self, factor: float) -> Contrast:
        """The contrast in another unit, or turned round."""
        parts = [Variance(p.source, p.variance * factor**2, p.freedom) for p in self.parts]
        return Contrast(self.value * factor, tuple(parts), self.n, self.seeds)

    def with_grid(self, steps: Iterable[float]) -> Contrast:
        """With the error of values read off lists: step² / 12 each, however many seeds agree."""
        variance = math.fsum(step * step / 12 for step in steps)
        part = Variance("grid", variance, math.inf)
        return Contrast(self.value, (*self.parts, part), self.n, self.seeds)

    def with_seeds(self, seeds: int) -> Contrast:
        """As it might be with more seeds: the same value, spread and items."""
        parts = [
            Variance(p.source, p.variance * self.seeds / seeds, seeds - 1)
            if p.source == "seeds"
            else p
            for p in self.parts
        ]
        return Contrast(self.value, tuple(parts), self.n, seeds)

    def with_items(self, times: float) -> Contrast:
        """As it might be with so many times the items."""
        parts = [
            Variance(p.source, p.variance / times, p.freedom) if p.source == "items" else p
            for p in self.parts
        ]
        return Contrast(self.value, tuple(parts), round(self.n * times), self.seeds)

    def _sources(self) -> list[tuple[float, float]]:
        """Variance and degrees of freedom of each source; several of one are pooled.

        Pooled parts have Satterthwaite's degrees of freedom, (sum v)² / sum (v² / f).
        """
        found = []
        for source in dict.fromkeys(part.source for part in self.parts):
            own = [p for p in self.parts if p.source == source and p.variance > 0]
            total = math.fsum(p.variance for p in own)
            if total > 0:
                below = math.fsum(p.variance**2 / p.freedom for p in own)
                found.append((total, total**2 / below if below > 0 else math.inf))
        return found


def crossed(tables: Sequence[NDArray[Any]], points: Sequence[float]) -> Contrast:
    """A contrast from what every item contributed with every seed.

    A study asks every seed the same items, so seeds and items are crossed: d_si = mu + u_s +
    v_i + e_si. Over k seeds and n items the mean's variance var_u / k + var_v / n +
    var_e / (k n) is S_seeds² / k + (S_items² / n - S_rest² / (k n)), where S_rest² is the mean
    square of the residuals; the second part is not taken below 0.

    Args:
        tables: One a task, of shape (seeds, items); they are independent, and the contrast
            is the sum of their means.
        points: What a whole point of an item is worth in each, 0 for what has no bound: 60
            items that all came out alike must not say that nothing can differ, so they get
            the variance that makes their interval reach 3 / n (the rule of three).

    Raises:
        TooThin: fewer than two seeds or two items in a table.
    """
    import numpy as np

    k = len(tables[0])
    if k < 2 or min(table.shape[1] for table in tables) < 2:
        raise TooThin("an error needs at least two seeds and two items")
    by_seed = np.zeros(k)
    over_items = rest = floors = 0.0
    for table, point in zip(tables, points, strict=True):
        n = table.shape[1]
        of_seeds, of_items = table.mean(axis=1), table.mean(axis=0)
        by_seed += of_seeds
        spread = float(of_items.var(ddof=1)) / n
        residual = table - of_seeds[:, None] - of_items + of_seeds.mean()
        rest += float((residual**2).sum()) / ((k - 1) * (n - 1)) / (k * n)
        over_items += spread
        if spread <= 1e-18:
            floors += (_RULE_OF_THREE * point / n) ** 2
    items = max(0.0, over_items - rest) + floors
    parts = (
        Variance("seeds", float(by_seed.var(ddof=1)) / k, k - 1),
        Variance("items", items, math.inf),
    )
    return Contrast(float(by_seed.mean()), parts, sum(t.shape[1] for t in tables), k)


def over_runs(values: Sequence[float], n: int, item_variance: float = 0.0) -> Contrast:
    """A contrast of numbers that are known once a seed, such as ranks of updates.

    Args:
        values: One a seed.
        n: What each was computed from.
        item_variance: Variance of the mean that comes from the items, where it is known.

    Raises:
        TooThin: fewer than three seeds.
    """
    if len(values) < MIN_SEEDS:
        raise TooThin(f"{count(len(values), 'seed')} to judge by; {MIN_SEEDS} are needed")
    parts = [Variance("seeds", mean(values).stderr ** 2, len(values) - 1)]
    if item_variance > 0:
        parts.append(Variance("items", item_variance, math.inf))
    return Contrast(math.fsum(values) / len(values), tuple(parts), n, len(values))


def mean_contrast(contrasts: Sequence[Contrast], shared_runs: bool = False) -> Contrast:
    """Plain mean of one contrast in several settings, each weighing the same.

    It speaks of these settings, not of others. Their runs are independent, so errors over
    seeds add as squares; items may be the same ones (the same HellaSwag), so errors over
    items are added as if wholly correlated, which is too much rather than too little.

    Args:
        contrasts: At least one.
        shared_runs: Whether they may hold the same runs (pairs of settings that have one
            in common); then errors over seeds are added like those over items.
    """
    correlated = ("items", "seeds") if shared_runs else ("items",)
    m = len(contrasts)
    parts: list[Variance] = []
    for source in ("seeds", "grid", "items"):
        found = [
            (math.fsum(own), min(p.freedom for p in c.parts if p.source == source))
            for c in contrasts
            if (own := [p.variance for p in c.parts if p.source == source])
        ]
        if source in correlated and found:
            total = math.fsum(math.sqrt(v) for v, _ in found) ** 2
            parts.append(Variance(source, total / m**2, min(f for _, f in found)))
        else:
            parts += [Variance(source, v / m**2, f) for v, f in found]
    value = math.fsum(c.value for c in contrasts) / m
    return Contrast(
        value, tuple(parts), sum(c.n for c in contrasts), min(c.seeds for c in contrasts)
    )


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each: familywise over all that were tested.

    Formula: of m sorted p, the i-th becomes max over j <= i of min(1, (m - j + 1) p_j).

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@lru_cache(maxsize=4096)
def cached_quantile(share: float, freedom: float) -> float:
    """`quantile`, remembered: a study asks for few of them many times."""
    return quantile(share, freedom)


# Places of the normal at which tails are tabled, up to a tail of 1e-19.
_Z = [0.05 * step for step in range(1, 181)]


@lru_cache(maxsize=256)
def _quantiles(freedom: float) -> NDArray[Any]:
    """Student's t at the tail of each place of `_Z`, squared; shape (places,)."""
    import numpy as np

    if math.isinf(freedom):
        return np.array(_Z) ** 2
    return np.array([_at_tail(0.5 * math.erfc(z / math.sqrt(2)), freedom) for z in _Z]) ** 2


def _tail(distance: float, sources: Sequence[tuple[float, float]]) -> float:
    """The one-sided tail at which an interval would just reach so far."""
    import numpy as np

    reach = np.sqrt(sum(v * _quantiles(round(freedom, 1)) for v, freedom in sources))
    z = float(np.interp(distance, np.concatenate([[0.0], reach]), [0.0, *_Z]))
    return 0.5 * math.erfc(z / math.sqrt(2))
