"""A command on a terminal of its own, as a person has it before them."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A Python module that runs on a terminal; at the end of the block it is gone.

    Args:
        *words: The module and its arguments.
        **changes: Of the environment.
    """

    def __init__(self, *words: str, **changes: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("LESS", "PAGER")}
        self.end, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**kept, "TERM": "xterm", "COLUMNS": "120", "LINES": "20", **changes},
        )
        os.close(other)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until the text stands there; what came before it is dropped."""
        until = time.monotonic() + seconds
        while text not in self.seen:
            self.seen += self._read(until).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def press_until(self, key: str, text: str) -> None:
        """Press a key until the text stands there: readline misses one right behind its prompt."""
        for patience in (2, 2, 2, 60):
            self.type(key)
            with suppress(AssertionError):
                return self.wait_for(text, patience)
        raise AssertionError(f"{text!r} does not come, after {self.seen!r}")

    def ended(self, seconds: float = 60) -> int:
        """Its exit code; what it still writes must be read, for it waits until it is."""
        until = time.monotonic() + seconds
        with suppress(OSError):
            while part := self._read(until):
                self.seen += part.decode(errors="replace")
        return self.process.wait(seconds)

    def _read(self, until: float) -> bytes:
        ready, _, _ = select.select([self.end], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"it is silent for long, after {self.seen!r}"
        return os.read(self.end, 4096)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.end, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *words: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
