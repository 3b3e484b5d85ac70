"""What a process and the one that started it have in common: messages, and how it ended."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

from laura.results.errors import EXIT_DONE


def kept_output() -> IO[bytes]:
    """Standard output for messages alone; what libraries print there goes to standard error."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return messages


def orders() -> SimpleQueue[Any]:
    """Pickled values of standard input as they come, taken in while work goes on.

    Who asks so never waits. When the input ends, that process is gone, and this one with it.
    """
    found: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        with suppress(EOFError, pickle.UnpicklingError):
            while True:
                found.put(pickle.load(sys.stdin.buffer))
        os._exit(EXIT_DONE)

    threading.Thread(target=listen, daemon=True).start()
    return found


def how_ended(code: int, errors: IO[bytes] | None = None) -> str:
    """How a process ended, in words: a signal or its exit code, and its last words if any.

    Args:
        code: As `Popen.returncode` has it.
        errors: What it wrote to standard error.
    """
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if errors is None:
        return how
    errors.seek(0)
    last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"{how} ({last[0]})" if last else how
