"""EMA: the average forgets a share of itself with each step, a <- d a + (1 - d) w.

The strength is the decay d. Source: Polyak and Juditsky 1992, with a decay as in arXiv:2508.00180.
"""

from __future__ import annotations


def share(step: int, strength: float) -> float:
    """What a step's weights count."""
    return 1 - strength


def lead(step: int, strength: float) -> float:
    """Nothing is corrected."""
    return 0.0
