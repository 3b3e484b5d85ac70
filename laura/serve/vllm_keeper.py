"""A small process between Laura and vLLM, so that no vLLM outlives who started it.

Started by `vllm_server.py` only, by its path; only the standard library is used here. Its
arguments are the command to run. It holds one end of a pipe: when that closes, since Laura
stops or was killed, the command gets SIGTERM, and what is left of its process group after
the grace gets SIGKILL. vLLM left to itself gives its shared memory back; killed, it leaves
it behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0
SIGNALLED = 128


def main(command: list[str]) -> int:
    """Run the command until it ends or nobody wants it any more; its exit code.

    An end by signal N is 128 + N, as a shell tells it.
    """
    # A Ctrl-C is Laura's matter, and a SIGTERM to the group is meant for the others in it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    threading.Thread(target=_listen, args=(child,), daemon=True).start()
    code = child.wait()
    return SIGNALLED - code if code < 0 else code


def _default_signals() -> None:
    # What is ignored here would be ignored by the command as well.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _listen(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
