"""Ctrl-C at moments of our choosing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_postponed() -> Iterator[Callable[[], None]]:
    """Ctrl-C, only where the function this gives is called, and at the block's end.

    Elsewhere it could come between a change and the line that notes it.
    """
    pending: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers, and only it is ever interrupted.
    ours = threading.current_thread() is threading.main_thread() and callable(previous)

    def rest() -> None:
        if pending and callable(previous):
            pending.clear()
            previous(signal.SIGINT, None)

    if ours:
        signal.signal(signal.SIGINT, lambda number, _: pending.append(number))
    try:
        yield rest
    finally:
        if ours:
            signal.signal(signal.SIGINT, previous)
    rest()
