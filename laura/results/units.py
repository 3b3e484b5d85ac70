"""Sizes, budgets and learning rates for people: one way to write them everywhere."""

from __future__ import annotations

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def memory_text(count: float | None) -> str:
    """Bytes in GiB (2^30), MiB or KiB with three digits: 1.5e9 is `1.40 GiB`; `?` if unknown."""
    if count is None:
        return "?"
    for unit, size in _UNITS:
        if count >= size:
            value = count / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:,.{digits}f} {unit}"
    return f"{count:.0f} B"


def budget_text(value: float) -> str:
    """A budget with all its digits, so that no two look alike: 110000.0 is `110,000`."""
    return f"{value:,.12g}"


def rate_text(value: float) -> str:
    """A learning rate: 0.0003 is `3e-4`, 2.5e-05 is `2.5e-5`."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
