"""The base's chat template, rendered in a process of its own.

A template is a program that comes with the model. Jinja's sandbox keeps it from reading anything,
but not from running for ever or from filling the memory: a hostile base would hang all tenants.
The process has little memory and little time for each conversation, and may die.

This file is both sides, and the child runs it as a script: nothing of Laura is imported above.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from typing import IO, Any

CPU_SECONDS = 2.0
WALL_SECONDS = 10.0
START_SECONDS = 60.0
MEMORY_BYTES = 256 << 20
"""What rendering may need beside the interpreter (where there is `/proc`)."""


class TemplateFault(ValueError):
    """A conversation that the template refuses, or takes too long or too much memory over."""


class TemplateProcess:
    """Renders conversations; its process starts with the first one, and anew after it has died.

    Args:
        template: The template's text.
        special: The tokenizer's special tokens, by the names that templates know.
    """

    def __init__(self, template: str, special: str) -> None:
        self._setup = json.dumps({"template": template, "special": json.loads(special)})
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to start, unless it runs; `render` waits for the rest."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                # -P: this folder's modules must not hide others of the same names.
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which ends in order
            )
            _write(self._child.stdin, self._setup.encode())

    def render(self, messages: list[dict[str, str]], most: int) -> str:
        """The text after which the model writes its next message.

        Args:
            messages: Each with role and content.
            most: Longest text, in characters.

        Raises:
            TemplateFault: there is none; the reason is for the client.
        """
        asked = json.dumps([messages, most]).encode()
        with self._lock:
            # Its process may have been killed, and not for this one's sake.
            answer = self._ask(asked) or self._ask(asked) or {"refused": "it ends its process"}
        if "refused" in answer:
            raise TemplateFault(answer["refused"])
        return answer["text"]

    def close(self) -> None:
        """End the process."""
        child, self._child, self._ready = self._child, None, False
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, asked: bytes) -> dict[str, str] | None:
        """The process' answer; None where it has died."""
        try:
            self.start()
            if not self._ready:
                self._ready = bool(self._read(START_SECONDS))
            assert self._child is not None
            _write(self._child.stdin, asked)
            answer: dict[str, str] = json.loads(self._read(WALL_SECONDS))
        except TimeoutError:
            self.close()
            return {"refused": "it takes too long over them"}
        except (OSError, EOFError):
            self.close()
            return None
        return answer

    def _read(self, seconds: float) -> bytes:
        """Its next message.

        Raises:
            TimeoutError: none came within so many seconds.
            EOFError: it has died.
        """
        assert self._child is not None and self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise TimeoutError
        return _read(self._child.stdout)


@functools.cache
def template_process(template: str, special: str) -> TemplateProcess:
    """The process of a template; all who ask for the same one share it.

    Args:
        template: The template's text.
        special: The tokenizer's special tokens by name, as JSON.
    """
    process = TemplateProcess(template, special)
    atexit.register(process.close)
    return process


def _write(pipe: IO[bytes] | None, message: bytes) -> None:
    assert pipe is not None
    pipe.write(len(message).to_bytes(8, "big") + message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """One message.

    Raises:
        EOFError: the other side has gone.
    """
    head = pipe.read(8)
    size = int.from_bytes(head, "big")
    message = pipe.read(size)
    if len(head) < 8 or len(message) < size:
        raise EOFError
    return message


class _OutOfTime(BaseException):
    """The signal of the timer; nothing that handles faults of a template catches it."""


def _serve() -> None:
    """The child: one answer for each conversation, until the pipe is closed."""
    from transformers.utils.chat_template_utils import render_jinja_template

    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    setup = json.loads(_read(pipe_in))
    _limit_memory()

    def out_of_time(*_: object) -> None:
        raise _OutOfTime

    signal.signal(signal.SIGPROF, out_of_time)
    _write(pipe_out, b"ready")

    def answer(messages: Any, most: int) -> dict[str, str]:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            (text,), _ = render_jinja_template(
                conversations=[messages],
                chat_template=setup["template"],
                add_generation_prompt=True,
                **setup["special"],
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > most:
            return {"refused": f"it makes a text of {len(text)} characters of them"}
        return {"text": text}

    while True:
        messages, most = json.loads(_read(pipe_in))
        try:
            found = answer(messages, most)
        except _OutOfTime:
            found = {"refused": f"it takes more than {CPU_SECONDS:g} seconds over them"}
        except MemoryError:
            found = {"refused": f"it takes more than {MEMORY_BYTES >> 20} MiB over them"}
        except Exception as error:  # whatever a template can raise
            found = {"refused": str(error)[:1000]}
        _write(pipe_out, json.dumps(found).encode())


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except (ImportError, OSError):  # no limit but that of time
        return
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    try:
        _serve()
    except (EOFError, KeyboardInterrupt):
        sys.exit()
