"""Intervals by resampling items: of a paired change, and of the mean of several tasks. No torch.

The standard errors of `statistics.py` are formulas; these intervals ask for no
formula and show where an error is lopsided. Items are drawn together on both
models, so that the pairing stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laura.statistics import at_least_two, finite_numbers, same_items, same_tasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = 0.95
_BLOCK = 1_000_000  # counts drawn at a time, about 8 MB: ten thousand items need no gigabytes


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
