"""Memory as people read it: one unit in everything that Laura prints."""

from __future__ import annotations

import re

import pytest

from laura.api import memory_bytes
from laura.results.units import memory_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1.5e6, "1.43 MiB"),
        (47_500_000, "45.3 MiB"),
        (2**30 - 2**20, "1,023 MiB"),
        (2**30, "1.00 GiB"),
        (16 * 10**9, "14.9 GiB"),
        (80 * 2**30, "80.0 GiB"),
        (1.5 * 2**40, "1,536 GiB"),
    ],
)
def test_three_digits_in_powers_of_1024(count: float, text: str) -> None:
    assert memory_text(count) == text


@pytest.mark.parametrize("size", ["1.00 GiB", "45.0 MiB", "16GiB", "2.50 KiB"])
def test_what_is_printed_can_be_given_back(size: str) -> None:
    value = float(re.sub("[^0-9.]", "", size))
    unit = 1024 ** (1 + "KMG".index(size[-3]))
    assert memory_bytes(size) == value * unit
    assert memory_bytes(memory_text(value * unit)) == value * unit
