"""Which rows of a benchmark are measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

SEED = 20240515  # fixed, so that every model meets the same items


def chosen(count: int, limit: int | None, subset: str) -> Sequence[int]:
    """Row numbers that are measured, rising.

    Args:
        count: Rows there are.
        limit: Rows wanted; None for all.
        subset: "first", or "random" for a fixed random choice. A larger random choice
            holds every smaller one.
    """
    if limit is None or limit >= count:
        return range(count)
    if subset == "first":
        return range(limit)
    order = list(range(count))
    random.Random(SEED).shuffle(order)
    return sorted(order[:limit])
