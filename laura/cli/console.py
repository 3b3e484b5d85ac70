"""What stands between a command and the person: registration, answers, exit codes.

A command is a function of a `Console` and its options. It works, hands the console one
answer, and ends with an exit code. Answers go to standard output (as one JSON object with
`--json`), everything else to standard error. What goes wrong ends in one of the exit codes
of `laura.results.errors`.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from laura.cli.options import parameter, parameters
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
_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text, for machines.")
]

Command = Callable[..., int | None]


class Console:
    """Where a command reports its progress and leaves its answer."""

    def __init__(self, progress: Progress, as_json: bool) -> None:
        self.progress = progress
        self.as_json = as_json

    def answer(self, value: dict[str, Any], *shown: Any) -> None:
        """Give the answer of the command.

        Args:
            value: What `--json` prints, as one object.
            *shown: What a person sees instead: texts, or anything rich can print.
        """
        if self.as_json:
            _write_json(value)
            return
        for part in shown:
            if isinstance(part, str):
                sys.stdout.write(part.rstrip("\n") + "\n")
            else:
                from rich.console import Console as Terminal

                Terminal().print(part)
        sys.stdout.flush()


def command(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command of `app`.

    The function takes a `Console` and, where it has any, a dataclass of its arguments and
    options; `--json` is added. It returns its exit code, None for 0.
    """

    def register(function: Command) -> Command:
        hints = get_type_hints(function)
        kinds: list[Any] = [kind for kind in hints.values() if is_dataclass(kind)]

        @functools.wraps(function)
        def run(json: bool = False, **given: Any) -> None:
            with opened(json) as console:
                code = function(console, *(kind(**given) for kind in kinds))
            if code:
                raise SystemExit(code)

        found = [one for kind in kinds for one in parameters(kind)]
        found.append(parameter("json", _Json, False))
        # What typer reads of a function.
        run.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in found}
        app.command(name)(run)
        return function

    return register


@contextmanager
def opened(as_json: bool = False) -> Iterator[Console]:
    """Run a command's work; every way it can end becomes an exit code.

    Raises:
        SystemExit: 2 for the user's mistake, 1 for our bug, 130 when stopped.
    """
    from laura.cli.progress import open_progress

    _quiet_libraries()
    try:
        with open_progress() as progress:
            yield Console(progress, as_json)
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
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if full or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
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
        value["faults"] = [vars(fault) for fault in error.faults]
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
