"""A small process between Laura and vLLM, so that no vLLM outlives who started it.

Started by `vllm_server.py` only, by its path; only the standard library is used here. Its
arguments are the command to run. It holds one end of a pipe: when that closes, since Laura
stops or was killed, the command gets SIGTERM, and what is left of its process group after
the end or the grace gets SIGKILL. vLLM left to itself gives its shared memory back; killed,
it leaves it behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE_SECONDS = 10.0
# For what the command has started, to end after it: Python's tracker gives shared memory back.
REST_SECONDS = 1.5
SIGNALLED = 128


def main(command: list[str]) -> int:
    """Run the command until it ends or nobody wants it any more; its exit code.

    An end by signal N is 128 + N, as a shell tells it.
    """
    # A Ctrl-C is Laura's matter, and a SIGTERM to the group is meant for the others in it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    unwanted = threading.Event()
    threading.Thread(target=_listen, args=(child, unwanted), daemon=True).start()
    code = child.wait()
    if unwanted.is_set() and not _alone_within(REST_SECONDS):
        # Nobody else is there to end what the command has started and left.
        os.killpg(os.getpid(), signal.SIGKILL)
    return SIGNALLED - code if code < 0 else code


def _default_signals() -> None:
    # What is ignored here would be ignored by the command as well.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _alone_within(seconds: float) -> bool:
    """Whether every other process of this group ends within the time."""
    end = time.monotonic() + seconds
    while _others():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _others() -> bool:
    """Whether this group has further processes."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            own = stat.parent.name == str(os.getpid())
            if int(group) == os.getpgrp() and state != "Z" and not own:
                return True
    return False


def _listen(child: subprocess.Popen[bytes], unwanted: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    unwanted.set()
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
