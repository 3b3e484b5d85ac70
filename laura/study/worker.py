"""A worker process: carries out runs of a study that another process has opened.

`python -m laura.study.worker`, started by `seats.py` only. The first value of
standard input is the setup, every further one names runs that go together, or a model
whose extras are measured. Each value of standard output is a message: progress, `done`,
or the fault that ended the worker. When the input ends, the process that opened the
study is gone, and so is this one.
"""

from __future__ import annotations

import pickle
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from queue import SimpleQueue
from typing import IO, Any

from laura.results.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_USER,
    LauraError,
    StoreError,
)
from laura.results.processes import kept_output, orders
from laura.results.progress import Bar
from laura.study.sharing import joined

ADVANCE_SECONDS = 0.3


class _Messages:
    """Sends messages, each pickled."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def send(self, **message: Any) -> None:
        pickle.dump(message, self._stream)
        self._stream.flush()


class _SentBar:
    """A bar that stands elsewhere; small advances are sent together."""

    def __init__(self, line: _Messages, number: int) -> None:
        self._line, self._number = line, number
        self._waiting, self._sent = 0.0, time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        self._waiting += amount
        if time.monotonic() - self._sent >= ADVANCE_SECONDS:
            self.send()

    def note(self, text: str) -> None:
        # A note comes with every step; those of steps that are not sent yet are not needed.
        if self._waiting == 0:
            self._line.send(bar=self._number, note=text)

    def send(self) -> None:
        self._line.send(bar=self._number, advance=self._waiting)
        self._waiting, self._sent = 0.0, time.monotonic()


class SentProgress:
    """A `Progress` that someone else shows."""

    def __init__(self, line: _Messages) -> None:
        self._line, self._count = line, 0

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar over there."""
        self._count += 1
        number = self._count
        self._line.send(bar=number, title=title, total=total, unit=unit)
        bar = _SentBar(self._line, number)
        try:
            yield bar
        except BaseException:
            self._line.send(bar=number, unfinished=True)
            raise
        bar.send()
        self._line.send(bar=number)

    def say(self, text: str) -> None:
        """Have the line shown."""
        self._line.send(say=text)


def main() -> int:
    """Work until told to stop; the exit code is 0 or 130 where that was all."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray's threads block it
    line = _Messages(kept_output())
    setup = pickle.load(sys.stdin.buffer)
    jobs = orders()
    try:
        _work(setup, jobs, line)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except LauraError as error:
        where = f" (on {platform.node()})" if setup["beacon"] else ""
        line.send(kind=type(error).__name__, fault=f"{error}{where}")
        return EXIT_USER
    except Exception as error:
        where = f"in a worker process:\n{traceback.format_exc()}"
        line.send(kind=type(error).__name__, fault=where)
        raise
    return EXIT_DONE


def _work(setup: dict[str, Any], jobs: SimpleQueue[Any], line: _Messages) -> None:
    with joined(setup["beacon"]) if setup["beacon"] else nullcontext():
        from laura.study.opening import join_study
        from laura.study.workers import perform

        session = join_study(**setup["study"], progress=SentProgress(line))
        if session.arithmetic != setup["arithmetic"]:
            raise StoreError(
                f"the command trains and measures in {' and '.join(setup['arithmetic'])}, here it "
                f"would be {' and '.join(session.arithmetic)}; set train.precision and "
                "measure.precision to what every machine has"
            )
        with closing(session.engines):
            while True:
                line.send(done=perform(session, *jobs.get()))


if __name__ == "__main__":
    sys.exit(main())
