"""Runs of a study carried out side by side, each in a process of its own.

A small model does not keep several cores busy: two processes of one thread each
are about twice as fast as one of two threads. The command that opened the study
holds its lock and hands out runs to workers, here or on the machines of a Ray cluster
(`seats.py`); `worker.py` is the other end. Workers hold the lock too, so no other study
gets in while one of them still lives, and end with the command, however it ends.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from laura.models.device import pick_device, threads, worker_devices
from laura.results import errors
from laura.results.errors import LauraError, StoreError
from laura.results.progress import Bar, Progress
from laura.study.extras import ExtraJob, measure_extras
from laura.study.runs import RunSpec, cohorts
from laura.study.seats import RayWorker, WorkerProcess, room
from laura.study.session import Session
from laura.study.sharing import BUSY, WAIT_SECONDS, beacon

# Below so many parameters a step is so short that threads mostly wait for one another.
SMALL = 5_000_000
MOST = 8
TRIES = 3  # of work whose worker in a cluster is lost
ROOM_SECONDS = 600.0  # for a cluster that grows as it is asked

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
        ray: Whether they go to the machines of the Ray cluster that is `connected`, at most
            as many as it has room for.

    Attributes:
        session: The open study.
        workers: The number settled on.
        shared: Whether another command was met at one of the runs.
    """

    def __init__(self, session: Session, workers: int | None, ray: bool = False) -> None:
        self.session, self._ray = session, ray
        self._device = pick_device(session.bench.device_name).type
        if ray:
            self.workers = min(room(self._gpus), workers or sys.maxsize)
        else:
            self.workers = choose_workers(session) if workers is None else workers
        self._crew: list[_Seat] = []
        self._guard, self._stop = threading.Lock(), threading.Event()
        self._held = ExitStack()
        self._beacon: Path | None = None
        self.shared = False

    def __enter__(self) -> Crew:
        if self._ray:
            self._beacon = self._held.enter_context(beacon(self.session.store.folder))
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard, self._held:
            self._stop.set()
            # Told to stop all at once, so that they save side by side.
            for seat in self._crew:
                seat.worker.interrupt()
            for seat in self._crew:
                seat.worker.end()

    @property
    def _gpus(self) -> int:
        """GPUs of each seat of a Ray cluster."""
        return self.session.recipe.train.devices if self._device == "cuda" else 0

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
                if not isinstance(group, ExtraJob):
                    wanted = [spec for spec in group if self.session.wants(spec)]
                    bar.advance(len(group) - len(wanted))
                    if not wanted:
                        continue
                    group = wanted
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
        if self.workers <= 1 and not self._ray:
            work(partial(perform, self.session))
            return
        # Also a single one goes to a worker: with other threads its sums would round otherwise.
        self.session.bench.step_aside()
        self.session.engines.close()
        while len(self._crew) < min(self.workers, most):
            self._crew.append(self.hire())
        faults = list[BaseException]()

        def guarded() -> None:
            try:
                work(self._carry)
            except _Stopped:
                pass
            except Exception as error:
                faults.append(error)
                self._stop.set()

        talks = [threading.Thread(target=guarded, daemon=True) for _ in self._crew]
        for talk in talks:
            talk.start()
        for talk in talks:
            while talk.is_alive() and not faults:
                talk.join(0.2)
        if faults:
            raise faults[0]

    def _carry(self, group: Group, points: int | None) -> list[str]:
        """Have a free seat do what `perform` does, another one where that is lost.

        Raises:
            StoreError: it was lost once here, where that comes again, or `TRIES` times elsewhere.
        """
        tries = TRIES if self._ray else 1
        for left in reversed(range(tries)):
            seat = self._take()
            try:
                states = seat.carry_out(group, points)
            except _SeatLost as lost:
                words = f"a worker process on {self.session.store.folder} {lost}"
            else:
                seat.free = True
                return states
            with self._guard:
                if self._stop.is_set():
                    raise _Stopped
                self._crew.remove(seat)
                if left:
                    self._crew.append(self.hire())
                    self.session.progress.say(f"{words}; its work goes on elsewhere")
            seat.worker.end()
        advice = (
            f"{tries} in a row were lost at the same work, and the same command continues"
            if self._ray
            else "the same command continues, and with fewer --workers it needs less memory"
        )
        raise StoreError(f"{words}; {advice}")

    def _take(self) -> _Seat:
        """A free seat; where all are busy, lost or not yet there, the next one.

        Raises:
            StoreError: the cluster had no room for a single one for long.
        """
        deadline = time.monotonic() + ROOM_SECONDS
        while not self._stop.is_set():
            with self._guard:
                there = [seat for seat in self._crew if seat.worker.ready()]
                for seat in there:
                    if seat.free:
                        seat.free = False
                        return seat
            if not there and time.monotonic() > deadline:
                raise StoreError(
                    f"the Ray cluster had no room for a single run in {ROOM_SECONDS:g} s (`ray "
                    "status` tells what it is at); the same command continues"
                )
            self._stop.wait(0.2)
        raise _Stopped

    def hire(self) -> _Seat:
        """One more worker, which joins the study and waits for its first order."""
        session = self.session
        devices = [self._device] if self._ray else worker_devices(session.bench.device_name)
        study = {
            "recipe": session.recipe,
            "folder": self._beacon.parent if self._beacon else session.store.folder,
            "data_dir": session.data_dir,
            "device": devices[len(self._crew) % len(devices)],
        }
        setup = pickle.dumps(
            {"study": study, "arithmetic": session.arithmetic, "beacon": self._beacon}
        )
        if self._ray:
            return _Seat(RayWorker(setup, self._gpus), session.progress)
        each = max(1, threads() // max(1, self.workers))
        return _Seat(WorkerProcess(setup, each, session.lock), session.progress)

    def wait(self) -> None:
        """Called by `work` where what is left is in other hands: let some time pass."""
        if self._stop.wait(WAIT_SECONDS):
            raise _Stopped


class _Stopped(Exception):
    """The crew is stopping: begin nothing more."""


class _Unfinished(Exception):
    """Raised within a bar so that it leaves without saying that it has finished."""


class _SeatLost(Exception):
    """The process, the actor or the machine that was at some runs is no more."""


class _Seat:
    """A worker and the conversation with it: what it is to do, and the bars that it moves."""

    def __init__(self, worker: WorkerProcess | RayWorker, progress: Progress) -> None:
        self.worker, self.free = worker, True
        self._progress = progress
        self._bars: dict[int, tuple[ExitStack, Bar]] = {}

    def carry_out(self, group: Group, points: int | None) -> list[str]:
        """Have it do what `perform` does.

        Raises:
            _SeatLost: it is no more; what it had saved stands in the study folder.
        """
        self.worker.say(pickle.dumps((group, points)))
        try:
            while True:
                message = self.worker.hear()
                if "done" in message:
                    states: list[str] = message["done"]
                    return states
                if "fault" in message:
                    raise _error(message["kind"], message["fault"])
                if "ended" in message:
                    raise _SeatLost(message["ended"])
                self._report(message)
        finally:
            for number in list(self._bars):
                self._leave(number)

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


def _error(kind: str, message: str) -> Exception:
    """The error a worker met, as the same kind of error here."""
    if kind in ("MemoryError", "OutOfMemoryError"):
        return MemoryError(message)
    known = getattr(errors, kind, None)
    if kind == "RecipeError" or not (isinstance(known, type) and issubclass(known, LauraError)):
        return RuntimeError(message)
    build: Callable[[str], LauraError] = known
    return build(message)
