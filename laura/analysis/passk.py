"""pass@k curves from the samples of an extra, with errors clustered by problem. No torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from laura.results.statistics import Estimate, mean, pass_at_k


def curve(counts: Sequence[tuple[int, int]], ks: Sequence[int]) -> list[Estimate]:
    """pass@k of a benchmark for each k.

    Formula: the mean over problems of `statistics.pass_at_k`; the problem is the unit
    of the error, however many samples it has. The points of one curve come from the
    same samples and are not independent of one another.

    Args:
        counts: For each problem its samples n and how many of them pass, c.
        ks: Each 1 to the smallest n.

    Raises:
        ValueError: fewer than two problems, or a number out of its range.

    Source:
        Chen et al. 2021, arXiv:2107.03374, equation 1; Biderman et al. 2024,
        arXiv:2405.09673, figure S9 (n = 256 at temperature 0.8).
    """
    one = functools.cache(pass_at_k)
    return [mean([one(n, c, k) for n, c in counts]) for k in ks]
