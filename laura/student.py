"""Student's t: tails and quantiles, for intervals over few seeds. No torch, no numpy."""

from __future__ import annotations

import math
from statistics import NormalDist

NORMAL_FROM = 1e6  # degrees of freedom beyond which t is the normal to every printed digit
_STEPS, _TINY = 300, 1e-300


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
    """The value that Student's t stays below with a chance, by bisection of `upper_tail`.

    Args:
        share: Chance in (0, 1).
        freedom: Degrees of freedom, above 0.

    Raises:
        ValueError: share is outside (0, 1), or freedom is not above 0.
    """
    if not 0 < share < 1:
        raise ValueError(f"a quantile needs a share between 0 and 1, came {share}")
    if share < 0.5:
        return -quantile(1 - share, freedom)
    low, high = 0.0, 1.0
    while upper_tail(high, freedom) > 1 - share:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if upper_tail(middle, freedom) > 1 - share else (low, middle)
    return high


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
