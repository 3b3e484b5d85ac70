"""Long answers through a pager, as they are made: the first screen need not wait for the last."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

NO_PAGER = {"", "cat"}


class _PipedConsole(Console):
    """A console that leaves a broken pipe to its caller; rich's own ends the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextmanager
def paged(wanted: bool = True) -> Iterator[Console]:
    """A console that prints through `$PAGER`, else `less`, else straight to the terminal.

    Leaving the pager early ends the printing without an error. Styles go only
    to `less`, which is told to show them.

    Args:
        wanted: False prints straight to the terminal.
    """
    process = _start() if wanted else None
    if process is None:
        yield _PipedConsole(highlight=False)
        return
    assert process.stdin is not None
    stream = io.TextIOWrapper(process.stdin, encoding="utf-8", errors="backslashreplace")
    # Ctrl-C is the pager's while it stands, as in git; the pager was started before this.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with suppress(BrokenPipeError):
            yield _console(stream, _is_less(str(process.args[0])))  # type: ignore[index]
            stream.close()
        process.wait()
    except KeyboardInterrupt:  # the polite signal to end, which is meant for both
        process.terminate()
        raise
    finally:
        with suppress(BrokenPipeError):
            stream.close()
        process.wait()
        signal.signal(signal.SIGINT, before)


def _console(stream: Any, styled: bool) -> Console:
    width = shutil.get_terminal_size().columns
    if styled:
        return _PipedConsole(file=stream, force_terminal=True, width=width, highlight=False)
    return _PipedConsole(
        file=stream, force_terminal=False, color_system=None, width=width, highlight=False
    )


def _start() -> subprocess.Popen[bytes] | None:
    """The pager's process; None where there is none, or none is wanted."""
    chosen = os.environ.get("PAGER")
    if chosen is not None and chosen.strip() in NO_PAGER:
        return None
    for command in (chosen, "less"):
        # A command that is not there, or whose quotes are open, is no reason to show nothing.
        with suppress(OSError, ValueError):
            words = shlex.split(command or "")
            if words:
                styles = ["-R"] if _is_less(words[0]) else []
                environment = {**os.environ, "LESS": os.environ.get("LESS", "FX")}
                return subprocess.Popen([*words, *styles], stdin=subprocess.PIPE, env=environment)
    return None


def _is_less(command: str) -> bool:
    return os.path.basename(command) == "less"
