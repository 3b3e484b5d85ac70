"""FINCH: surprising steps are small, the rate falls with the step's loss as loss^-a.

The strength a is 1/2: re-derived, since the preprint's own formula and clip are not known
exactly. The factor is held between .1 and 1, so a loss below one nat changes nothing.
Source: arXiv:2605.20005.
"""

from __future__ import annotations


def factor(loss_nats: float, strength: float) -> float:
    """Factor of the scheduled rate for a step of this mean loss."""
    return float(min(1.0, max(0.1, max(loss_nats, 1e-6) ** -strength)))
