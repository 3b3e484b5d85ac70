"""Time and memory of a piece of work, measured alike on both sides; standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def measured(work: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
    """What the work gives, and what it cost.

    Returns:
        The result and {"seconds" (by the clock), "core_seconds" (processor time of all
        threads), "peak_memory_bytes" (most resident memory while it ran)}.
    """
    _forget_peak()
    cores, start = time.process_time(), time.perf_counter()
    result = work()
    seconds, core_seconds = time.perf_counter() - start, time.process_time() - cores
    cost = {"seconds": seconds, "core_seconds": core_seconds, "peak_memory_bytes": _peak()}
    return result, cost


def _forget_peak() -> None:
    """Let the peak count from now; where the system refuses, it counts from the start."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; the benchmark needs Linux")
