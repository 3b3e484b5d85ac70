"""The spectrum of pure noise, as a reference for the rank of an update. No torch.

A matrix of independent entries of one variance has a high rank by itself, the higher
the less square it is. Its squared singular values follow the law of Marchenko and
Pastur; energy under that law is a semicircle, so both shares below are closed forms.
"""

from __future__ import annotations

import math
from functools import cache


@cache
def noise_rank(rows: int, columns: int, energy: float) -> int:
    """Rank that holds a share of the energy of a large matrix of independent noise.

    Args:
        rows: Size of one side.
        columns: Size of the other.
        energy: Share of the sum of squared singular values, in (0, 1).

    Returns:
        Count of singular directions, 1 to min(rows, columns). The law is that of large
        matrices; a sampled one is within a few directions of it.

    Example:
        4096 x 4096 at 0.9 gives 2,089, which is 51 %; 4096 x 11008 gives 71 %.

    Source:
        Marchenko and Pastur 1967; the reference is our reading of Biderman et al. 2024,
        arXiv:2405.09673, figure S8.
    """
    small, large = sorted((rows, columns))
    share = _share_of_directions(_angle_of_energy(energy), small / large)
    return min(small, max(1, math.ceil(share * small)))


def _angle_of_energy(energy: float) -> float:
    """Where eigenvalue c + R cos(angle) has this share of the energy above it.

    With c = 1 + y and R = 2 sqrt(y), y the ratio of the sides, the energy above an
    eigenvalue is (angle - sin cos) / pi at every y.
    """
    low, high = 0.0, math.pi
    for _ in range(60):
        middle = (low + high) / 2
        share = (middle - math.sin(middle) * math.cos(middle)) / math.pi
        low, high = (middle, high) if share < energy else (low, middle)
    return high


def _share_of_directions(angle: float, ratio: float) -> float:
    """Share of eigenvalues above c + R cos(angle): 2/pi of the integral of sin²/(c + R cos)."""
    s = math.sqrt(ratio)
    half = math.atan2((1 - s) * math.sin(angle / 2), (1 + s) * math.cos(angle / 2))
    whole = (1 + ratio) * angle - 2 * s * math.sin(angle) - 2 * (1 - ratio) * half
    return whole / (2 * math.pi * ratio)
