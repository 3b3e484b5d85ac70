"""What stands between a command and the person: progress, answers, exit codes.

A command opens the door, works, and hands out one answer. Answers go to
standard output (as one JSON object with `--json`), everything else to standard
error. What goes wrong ends in one of the exit codes of `laura.results.errors`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.results.errors import (
    EXIT_BUG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_USER,
    LauraError,
    RecipeError,
)

if TYPE_CHECKING:
    from laura.results.progress import Progress

STOPPED = "stopped; the same command continues"
BUG = (
    "This is a bug in Laura, not your mistake. Please report it with the lines above, the "
    "command you gave, and what `laura doctor` prints. Finished work is kept."
)
MEMORY = (
    "out of memory. Lower train.rows_per_pass or train.row_tokens, choose a smaller base or "
    "train.precision=bf16, or close other programs; finished work is kept"
)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class Desk:
    """Where a command reports its progress and leaves its answer."""

    def __init__(self, progress: Progress, as_json: bool) -> None:
        self.progress = progress
        self.as_json = as_json

    def answer(self, value: dict[str, Any], shown: Any = None) -> None:
        """Give the answer of the command.

        Args:
            value: What `--json` prints, as one object.
            shown: What a person sees: text, or anything rich can print.
        """
        if self.as_json:
            _write_json(value)
        elif isinstance(shown, str):
            sys.stdout.write(shown.rstrip("\n") + "\n")
        elif shown is not None:
            from rich.console import Console

            Console().print(shown)
        sys.stdout.flush()


@contextmanager
def opened(as_json: bool = False) -> Iterator[Desk]:
    """Run a command's work; every way it can end becomes an exit code.

    Raises:
        SystemExit: 2 for the user's mistake, 1 for our bug, 130 when stopped.
    """
    from laura.cli.bars import open_progress

    _quiet_libraries()
    try:
        with open_progress() as progress:
            yield Desk(progress, as_json)
    except KeyboardInterrupt:
        _say(STOPPED)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_DONE) from None
    except Exception as error:
        message = mistake(error)
        if message is None:
            traceback.print_exc(file=sys.stderr)
            _say(BUG)
        else:
            from laura.report.visible import visible

            # A message may quote a file's name or content, which others chose.
            _say(visible(f"error: {message}"))
        if as_json:
            _write_json({"error": _error_object(error, message)})
        raise SystemExit(EXIT_BUG if message is None else EXIT_USER) from None


def mistake(error: Exception) -> str | None:
    """What to tell the user about an error they can mend; None when it is our bug."""
    if isinstance(error, LauraError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        from laura.results.store import disk_message

        return disk_message(error, Path(str(error.filename or "a file")))
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, RuntimeError) and "can't allocate memory" in text:
        return MEMORY
    return None


def listen_for_stop() -> None:
    """Treat the polite signal to end (SIGTERM) like Ctrl-C, so work stops cleanly."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _error_object(error: Exception, message: str | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": message or str(error),
        "bug": message is None,
    }
    if isinstance(error, RecipeError):
        value["faults"] = [
            {"path": fault.path, "problem": fault.problem, "line": fault.line}
            for fault in error.faults
        ]
    return value


def _write_json(value: dict[str, Any]) -> None:
    # Samples and names may hold what a terminal would obey; as JSON's escapes it is the same.
    from laura.report.visible import visible_json

    sys.stdout.write(visible_json(json.dumps(value, ensure_ascii=False, default=str)) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _quiet_libraries() -> None:
    """Keep other libraries' bars and warnings out of ours, unless the user asked for them."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
