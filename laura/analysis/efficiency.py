"""How many tokens or epochs an arm needs to reach a level of learning. No torch.

Shapes: B draws of the bootstrap, the first as measured; T budgets, rising.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laura.analysis.resampling import Array, quantiles

# Shares of the way from the base to the best arm's best score.
LEVELS = (0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Needed:
    """What an arm needs.

    Attributes:
        value: Tokens or epochs; None where the level is never reached.
        at_most: Whether the smallest budget already reaches it, so that less may do.
        interval: Percentile interval over items and seeds; an end that is None is
            beyond the largest budget. None as a whole where hardly any draw gets there.
        reached: Share of the draws that get there.
    """

    value: float | None
    at_most: bool
    interval: tuple[float | None, float | None] | None
    reached: float


def needed(budgets: Sequence[float], learnt_BT: Array, level: float) -> Needed:
    """The budget at which a curve first reaches a level, interpolated on the log of the budget.

    Formula: with the first T whose score is at least the level, and the budget before it,
    ln t = ln t_0 + (ln t_1 - ln t_0) (level - l_0) / (l_1 - l_0). What the curve does
    later does not matter.

    Args:
        budgets: Tokens or epochs, rising.
        learnt_BT: The scores there, turned so that higher is better.
        level: The level, turned alike.

    Raises:
        ValueError: budgets that do not rise from above 0, or another number of scores.
    """
    times = np.asarray(budgets, float)
    if not len(times) or times[0] <= 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"budgets rise from above 0, came {list(budgets)}")
    if learnt_BT.shape[1] != len(budgets):
        raise ValueError(f"{len(budgets)} budgets but {learnt_BT.shape[1]} scores")
    logs, there = np.log(times), learnt_BT >= level
    first = there.argmax(axis=1)
    rows, before = np.arange(len(learnt_BT)), np.maximum(first - 1, 0)
    low, high = learnt_BT[rows, before], learnt_BT[rows, first]
    span = np.where(high > low, high - low, 1.0)
    share = np.where(first > 0, (level - low) / span, 0.0)
    found = times[before] * np.exp((logs[first] - logs[before]) * share)
    found = np.where(there.any(axis=1), found, np.inf)
    low_end, high_end = map(_finite, quantiles(found[1:]))
    interval = None if low_end is None else (low_end, high_end)
    reached = float(np.isfinite(found[1:]).mean())
    return Needed(_finite(float(found[0])), bool(there[0, 0]), interval, reached)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
