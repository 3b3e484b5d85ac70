"""Where a worker process runs: on this machine, or through Ray wherever a cluster has room.

Both are talked to alike, and `worker.py` is what runs in the process. Through Ray an actor
starts it and hands on what is said, so it saves where it is at a signal as one here does, and
ends with its actor, which ends with the command. Nothing here needs torch: an actor is there
in a second.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from laura.results.errors import MissingExtraError, UsageError, first_line
from laura.results.processes import how_ended

STOP_SECONDS = 600.0  # to save a large model to a slow disk
REACH_SECONDS = 10.0
MOST_WORDS = 200  # of what Ray tells
# RFC 9113, 3.4 and 4.1: how HTTP/2, and so gRPC, begins, and the fourth byte of what comes back.
SETTINGS_FRAME = b"\x04"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0" + SETTINGS_FRAME + bytes(5)


class WorkerProcess:
    """A worker process on this machine; values that are said to it come pickled.

    Args:
        setup: The first value that it is told.
        threads: How many threads it computes with.
        lock: Open file that it inherits, and with it the study's lock.
        folder: Where it works if this machine has such a folder; None for here.
    """

    def __init__(
        self, setup: bytes, threads: int, lock: int | None = None, folder: str | None = None
    ) -> None:
        self._errors = tempfile.TemporaryFile()
        quiet = [] if sys.warnoptions else ["-W", "ignore"]
        self._process = subprocess.Popen(
            [sys.executable, *quiet, "-m", "laura.study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=() if lock is None else (lock,),
            cwd=folder if folder and os.path.isdir(folder) else None,
            # A Ctrl-C reaches the command alone, which passes it on once.
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.say(setup)

    def ready(self) -> bool:
        """Whether there is a machine that it is on; here there is."""
        return True

    def say(self, value: bytes) -> None:
        """Tell it a value."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; hearing it tells why
            self._process.stdin.write(value)
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its next message; `{"ended": how}` when it is no more."""
        assert self._process.stdout is not None
        try:
            message: dict[str, Any] = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            return {"ended": self._end_words()}
        return message

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

    def _end_words(self) -> str:
        return f"ended by {how_ended(self._process.wait(), self._errors)}"


class RayWorker:
    """A `WorkerProcess` on whatever machine of the Ray cluster has room, now or later.

    Args:
        setup: The first value that it is told.
        gpus: GPUs that it has for itself, beside one core.
    """

    def __init__(self, setup: bytes, gpus: int) -> None:
        import ray

        # It is interrupted and ended while it listens.
        kind = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=3)(WorkerProcess)
        self._actor: Any = kind.remote(setup, threads=1, folder=os.getcwd())
        self._ready = self._actor.ready.remote()

    def ready(self) -> bool:
        """Whether there is a machine that it is on, or never will be."""
        import ray

        return bool(ray.wait([self._ready], timeout=0)[0])

    def say(self, value: bytes) -> None:
        """Tell it a value."""
        self._actor.say.remote(value)  # if it is gone, hearing it tells why

    def hear(self) -> dict[str, Any]:
        """Its next message; `{"ended": how}` when it, its actor or its machine is no more."""
        import ray

        try:
            message: dict[str, Any] = ray.get(self._actor.hear.remote())
        except ray.exceptions.RayError as error:
            return {"ended": f"is gone: {_last_words(error)}"}
        return message

    def interrupt(self) -> None:
        """Have it save where it is and stop."""
        if self.ready():
            self._actor.interrupt.remote()

    def end(self) -> None:
        """Wait until it has stopped, and give its room back."""
        import ray

        if self.ready():
            with suppress(ray.exceptions.RayError):
                ray.get(self._actor.end.remote(), timeout=STOP_SECONDS + REACH_SECONDS)
        ray.kill(self._actor)


def _last_words(error: Exception) -> str:
    """What Ray says of an actor that is gone, in one line: its sentences, not its details."""
    told = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return " ".join(told)[:MOST_WORDS]


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a Ray cluster while the block lasts, unless there is one already.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; None for none.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: it is no address, or no cluster answers there.
    """
    if address is None:
        yield
        return
    place = re.fullmatch(r"auto|(?:ray://)?([^/\s]+):(\d{1,5})", address)
    if place is None:
        raise UsageError(
            f"--ray takes auto, HOST:PORT or ray://HOST:PORT, came {address!r}; HOST:PORT is what "
            "`ray start --head` tells"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "8")  # a second each, until it is given up
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "--ray needs Ray: python -m pip install 'laura-lab[ray]'"
        ) from error
    if ray.is_initialized():
        yield
        return
    _reach(ray, address, *place.groups())
    try:
        yield
    finally:
        ray.shutdown()


def _reach(ray: Any, address: str, host: str | None, port: str | None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        if host and port and os.environ.get("RAY_USE_TLS") != "1":
            _knock(host, int(port))
        ray.init(address, logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ImportError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({first_line(error)}); start one with "
            "`ray start --head` and give the address that it tells"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it for itself


def _knock(host: str, port: int) -> None:
    """Ask for gRPC's first frame, since Ray itself takes minutes to give up."""
    with socket.create_connection((host, port), REACH_SECONDS) as line:
        line.sendall(GREETING)
        if line.recv(9)[3:4] != SETTINGS_FRAME:
            raise ConnectionError("what listens there does not speak gRPC")


def room(gpus: int) -> int:
    """How many seats the cluster has room for when it does nothing else.

    Args:
        gpus: GPUs of each, beside one core.

    Raises:
        UsageError: not a single one.
    """
    import ray

    has = ray.cluster_resources()
    cores, devices = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    seats = min(cores, devices // gpus) if gpus else cores
    if not seats:
        raise UsageError(
            f"the Ray cluster has no room for a single run, which takes a core and {gpus} GPUs, as "
            f"the command's own device asks: it has {cores} cores and {devices} GPUs"
        )
    return seats
