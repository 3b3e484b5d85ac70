"""What is asked of the C library's memory, and that it does it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from laura.models import device
from laura.models.device import MALLOC_OPTIONS, keep_freed_memory

PROGRAM = """
import resource, sys, torch
from laura.models.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    return [torch.ones(n * 2**18) for n in (1, 9, 17, 25, 3)]  # megabytes
for _ in range(3):
    pieces = work(); del pieces
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    pieces = work(); del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(way: str) -> int:
    """Pages that five rounds of the same pieces of memory had to be given anew."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep it or not")
def test_memory_that_is_freed_is_there_for_what_comes_next() -> None:
    assert new_pages("kept") < 0.05 * 5 * 55 * 2**20 / 4096 < new_pages("plain")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Glibc:
        def mallopt(self, option: int, value: int) -> int:
            asked.append((option, value))
            return 1

    def missing(name: str) -> None:
        raise OSError(f"no {name} here")

    for library in (lambda name: Glibc(), missing, lambda name: object()):
        monkeypatch.setattr(device.ctypes, "CDLL", library)
        keep_freed_memory()
    assert asked == list(MALLOC_OPTIONS)
