"""Runs of a study carried out side by side, each in a process of its own.

A small model does not keep several cores busy: two processes of one thread each
are about twice as fast as one of two threads. The command that opened the study
holds its lock and hands out runs; `worker.py` is the other end. Workers inherit
the lock, so no other study gets in while one of them still lives, and end with the
command, however it ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from laura.models.device import threads, worker_devices
from laura.results import errors
from laura.results.errors import LauraError, StoreError
from laura.results.progress import Bar, Progress
from laura.study.extras import ExtraJob, measure_extras
from laura.study.runs import RunSpec, cohorts
from laura.study.session import Session
from laura.study.sharing import BUSY, WAIT_SECONDS

# Below so many parameters a step is so short that threads mostly wait for one another.
SMALL = 5_000_000
MOST = 8
STOP_SECONDS = 600.0  # to save a large model to a slow disk

# What one process does without a break: runs that go together, or a model's extras.
Group = list[RunSpec] | ExtraJob
# Carries out a group, a single run up to so many of its budget points; gives their states.
Carry = Callable[[Group, int | None], list[str]]


def perform(session: Session, group: Group, points: int | None) -> list[str]:
    """Carry out runs together, or measure a model's extras; returns their states then."""
    if isinstance(group, ExtraJob):
        return [measure_extras(session, group)]
    return session.carry_out(group, points)


def choose_workers(session: Session) -> int:
    """How many runs go on side by side where the user has not said: one a CUDA device."""
    if session.recipe.train.devices > 1:
        return 1
    model = session.bench.base.model
    if model.device.type == "cuda":
        return len(worker_devices(session.bench.device_name))
    small = sum(p.numel() for p in model.parameters()) < SMALL
    return min(threads(), MOST) if small and model.device.type == "cpu" else 1


class Crew:
    """Carries out runs, in this process or in several; to be used in `with`.

    Args:
        session: The open study.
        workers: How many runs go on at once; None for as many as pay.

    Attributes:
        session: The open study.
        workers: The number settled on.
        shared: Whether another command was met at one of the runs.
    """

    def __init__(self, session: Session, workers: int | None) -> None:
        self.session = session
        self.workers = choose_workers(session) if workers is None else workers
        self._crew: list[_WorkerProcess] = []
        self.shared = False
        self._stop = threading.Event()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # Told to stop all at once, so that they save side by side.
        for worker in self._crew:
            worker.interrupt()
        for worker in self._crew:
            worker.end()

    def carry_out(self, specs: Sequence[RunSpec | ExtraJob], bar: Bar) -> None:
        """Train and measure all of these runs, or measure extras; `bar` counts them.

        Those that another command on this study is at come last, and are waited for.

        Raises:
            LauraError: what stopped one of them; the others save where they are.
        """
        runs = [job for job in specs if isinstance(job, RunSpec)]
        left = deque[Group](cohorts(runs, self.session.recipe, self.workers))
        left.extend(job for job in specs if isinstance(job, ExtraJob))

        def work(carry: Carry) -> None:
            passed_over = 0
            while left:
                try:
                    group = left.popleft()
                except IndexError:
                    return
                states = carry(group, None)
                if isinstance(group, ExtraJob):
                    busy: list[Group] = [group] if states == [BUSY] else []
                else:
                    pairs = zip(group, states, strict=True)
                    busy = [[spec] for spec, state in pairs if state == BUSY]
                bar.advance(len(states) - len(busy))
                if not busy:
                    passed_over = 0
                    continue
                self.shared = True
                left.extend(busy)
                passed_over += 1
                if passed_over >= len(left):
                    self.wait()

        self.share(work, len(left))

    def share(self, work: Callable[[Carry], None], most: int) -> None:
        """Let every worker do `work`, which takes runs from a common store until it is empty.

        Args:
            work: Given what carries out a group; called once for each worker, in a thread.
            most: More workers than this would have nothing to do.

        Raises:
            LauraError: what stopped one of them; the others save where they are.
        """
        if self.workers <= 1:
            work(partial(perform, self.session))
            return
        # Also a single one goes to a worker: with other threads its sums would round otherwise.
        self.session.bench.step_aside()
        while len(self._crew) < min(self.workers, most):
            self._crew.append(self.hire())
        faults = list[BaseException]()

        def guarded(worker: _WorkerProcess) -> None:
            def carry(group: Group, points: int | None) -> list[str]:
                if self._stop.is_set():
                    raise _Stopped
                return worker.carry_out(group, points)

            try:
                work(carry)
            except _Stopped:
                pass
            except Exception as error:
                faults.append(error)
                self._stop.set()

        talks = [
            threading.Thread(target=guarded, args=(worker,), daemon=True) for worker in self._crew
        ]
        for talk in talks:
            talk.start()
        for talk in talks:
            while talk.is_alive() and not faults:
                talk.join(0.2)
        if faults:
            raise faults[0]

    def hire(self) -> _WorkerProcess:
        """One more process, which joins the study and waits for its first order."""
        session = self.session
        devices = worker_devices(session.bench.device_name)
        setup = {"recipe": session.recipe, "folder": session.store.folder,
                 "data_dir": session.data_dir,
                 "device": devices[len(self._crew) % len(devices)]}  # fmt: skip
        each = max(1, threads() // max(1, self.workers))
        return _WorkerProcess(setup, each, session.lock, session.progress)

    def wait(self) -> None:
        """Called by `work` where what is left is in other hands: let some time pass."""
        if self._stop.wait(WAIT_SECONDS):
            raise _Stopped


class _Stopped(Exception):
    """The crew is stopping: begin nothing more."""


class _Unfinished(Exception):
    """Raised within a bar so that it leaves without saying that it has finished."""


class _WorkerProcess:
    """One process, and the conversation with it: a pickled value a message."""

    def __init__(
        self, setup: dict[str, Any], threads: int, lock: int | None, progress: Progress
    ) -> None:
        self._progress, self._setup = progress, setup
        self._errors = tempfile.TemporaryFile()
        self._bars: dict[int, tuple[ExitStack, Bar]] = {}
        quiet = [] if sys.warnoptions else ["-W", "ignore"]
        self._process = subprocess.Popen(
            [sys.executable, *quiet, "-m", "laura.study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=() if lock is None else (lock,),
            # A Ctrl-C reaches the command alone, which passes it on once.
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self._say(setup)

    def carry_out(self, group: Group, points: int | None) -> list[str]:
        """Have it do what `perform` does."""
        self._say((group, points))
        assert self._process.stdout is not None
        try:
            while True:
                message = pickle.load(self._process.stdout)
                if "done" in message:
                    states: list[str] = message["done"]
                    return states
                if "fault" in message:
                    raise _error(message["kind"], message["fault"])
                self._report(message)
        except (EOFError, pickle.UnpicklingError):
            raise StoreError(self._end_words()) from None
        finally:
            for number in list(self._bars):
                self._leave(number)

    def interrupt(self) -> None:
        """Have it save where it is and stop; an idle one just stops."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Wait until it has stopped."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _say(self, value: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(value, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; reading its answer tells why

    def _report(self, message: dict[str, Any]) -> None:
        number = message.get("bar", 0)
        if "say" in message:
            self._progress.say(message["say"])
        elif "title" in message:
            stack = ExitStack()
            bar = self._progress.bar(message["title"], message["total"], message["unit"])
            self._bars[number] = (stack, stack.enter_context(bar))
        elif "advance" in message:
            self._bars[number][1].advance(message["advance"])
        elif "note" in message:
            self._bars[number][1].note(message["note"])
        elif "unfinished" in message:
            self._leave(number)
        else:
            self._bars.pop(number)[0].close()

    def _leave(self, number: int) -> None:
        """Take away a bar whose work was stopped."""
        stack, _ = self._bars.pop(number)
        with suppress(_Unfinished), stack:
            raise _Unfinished

    def _end_words(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        last = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        told = f" ({last[0]})" if last else ""
        return (
            f"a worker process on {self._setup['folder']} ended by {how}{told}; the same command "
            "continues, and with fewer --workers it needs less memory"
        )


def _error(kind: str, message: str) -> Exception:
    """The error a worker met, as the same kind of error here."""
    if kind in ("MemoryError", "OutOfMemoryError"):
        return MemoryError(message)
    known = getattr(errors, kind, None)
    if kind == "RecipeError" or not (isinstance(known, type) and issubclass(known, LauraError)):
        return RuntimeError(message)
    build: Callable[[str], LauraError] = known
    return build(message)
