"""BEMA: an average that counts new weights ever less, and corrects for its lag.

a <- (1 - b) a + b w with b = (10 + t)^-k, kept: a + (10 + t)^-.2 (w - w_0). The strength is k, 1/2
in the paper; lag and powers are those of TRL's `BEMACallback`.
Source: Block and Zhang 2025, arXiv:2508.00180.
"""

from __future__ import annotations

LAG, BIAS_POWER = 10.0, 0.2


def share(step: int, strength: float) -> float:
    """What a step's weights count."""
    return float((LAG + step) ** -strength)


def lead(step: int, strength: float) -> float:
    """How far what is kept runs ahead of the average."""
    return float((LAG + step) ** -BIAS_POWER)
