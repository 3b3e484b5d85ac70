"""Sizes in memory and on disk for people: one unit everywhere, powers of 1024."""

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
