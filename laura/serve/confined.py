"""What strangers wrote and must be worked through, in processes of their own.

A chat template is a program that comes with the model. Jinja's sandbox keeps it from reading
anything, but not from running for ever or from filling the memory: a hostile base would hang all
tenants. A schema comes from a client, and llguidance ends the process over a long chain of
references: it is compiled here before it is in the engine (`engine/grammar.py`).
Each process has little memory and little time for each question, and may die.

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
from collections.abc import Callable
from typing import IO, Any, TypeVar

CPU_SECONDS = 2.0
WALL_SECONDS = 10.0
START_SECONDS = 60.0
MEMORY_BYTES = 256 << 20
"""What an answer may need beside the interpreter (where there is `/proc`)."""
STACK_BYTES = 8 << 20
Answer = dict[str, str]
Kept = TypeVar("Kept", bound="ConfinedProcess")


class ConfinedFault(ValueError):
    """Something is refused, or takes too long or too much memory; the reason is for the client."""


class ConfinedProcess:
    """Answers questions; its process starts with the first one, and anew after it has died.

    Args:
        work: One of WORKS.
        setup: What it is told at the start, as JSON.
    """

    def __init__(self, work: str, setup: str) -> None:
        self._work, self._setup = work, setup
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to start, unless it runs; `ask` waits for the rest."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                # -P: this folder's modules must not hide others of the same names.
                [sys.executable, "-P", __file__, self._work],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which ends in order
            )
            _write(self._child.stdin, self._setup.encode())

    def ask(self, *question: Any) -> Answer:
        """What it says to a question.

        Raises:
            ConfinedFault: it refuses, or is killed over it.
        """
        asked = json.dumps(question).encode()
        with self._lock:
            # Its process may have been killed, and not for this one's sake.
            ended = {"refused": "it ends its process: it is too deep, too large or too slow"}
            answer = self._ask(asked) or self._ask(asked) or ended
        if "refused" in answer:
            raise ConfinedFault(answer["refused"])
        return answer

    def close(self) -> None:
        """End the process."""
        child, self._child, self._ready = self._child, None, False
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, asked: bytes) -> Answer | None:
        """The process' answer; None where it has died."""
        try:
            self.start()
            if not self._ready:
                self._ready = bool(self._read(START_SECONDS))
            assert self._child is not None
            _write(self._child.stdin, asked)
            answer: Answer = json.loads(self._read(WALL_SECONDS))
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


class TemplateProcess(ConfinedProcess):
    """Renders conversations.

    Args:
        template: The template's text.
        special: The tokenizer's special tokens, by the names that templates know, as JSON.
    """

    def __init__(self, template: str, special: str) -> None:
        setup = {"template": template, "special": json.loads(special)}
        super().__init__("templates", json.dumps(setup))

    def render(
        self, messages: list[dict[str, Any]], most: int, tools: list[Any] | None = None
    ) -> str:
        """The text after which the model writes its next message.

        Args:
            messages: Each with role and content.
            most: Longest text, in characters.
            tools: Functions that it may call, as OpenAI has them.

        Raises:
            ConfinedFault: there is none.
        """
        return self.ask(messages, most, tools)["text"]


class GrammarProcess(ConfinedProcess):
    """Tries grammars.

    Args:
        tokenizer: As llguidance reads it (`tokenizer_text`).
        limits: Of the compiler, as JSON.
    """

    def __init__(self, tokenizer: str, limits: str) -> None:
        setup = {"tokenizer": tokenizer, "limits": json.loads(limits)}
        super().__init__("grammars", json.dumps(setup))

    def check(self, source: str) -> None:
        """Compile a grammar, and find what may come first.

        Raises:
            ConfinedFault: it cannot be used.
        """
        self.ask(source)


@functools.cache
def kept(kind: type[Kept], *given: Any) -> Kept:
    """A process that all share who ask for the same one; it ends with this one."""
    process = kind(*given)
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


def _render(setup: Any) -> Callable[..., Answer]:
    from transformers.utils.chat_template_utils import render_jinja_template

    def answer(messages: Any, most: int, tools: Any) -> Answer:
        (text,), _ = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=setup["template"],
            add_generation_prompt=True,
            **setup["special"],
        )
        if len(text) > most:
            return {"refused": f"it makes a text of {len(text)} characters of them"}
        return {"text": text}

    return answer


def _compile(setup: Any) -> Callable[..., Answer]:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    # Inside the compiler no handler runs: who takes too long is killed.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limits, tokenizer = LLParserLimits(**setup["limits"]), LLTokenizer(setup["tokenizer"])

    def answer(source: str) -> Answer:
        matcher = LLMatcher(tokenizer, source, limits=limits, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return {"refused": matcher.get_error()[:1000]} if matcher.is_error() else {"ok": ""}

    return answer


WORKS = {"templates": _render, "grammars": _compile}


def _serve(work: Callable[[Any], Callable[..., Answer]]) -> None:
    """The child: one answer for each question, until the pipe is closed."""

    def out_of_time(*_: object) -> None:
        raise _OutOfTime

    signal.signal(signal.SIGPROF, out_of_time)
    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    answer = work(json.loads(_read(pipe_in)))
    _limit_memory()
    _write(pipe_out, b"ready")
    while True:
        question = json.loads(_read(pipe_in))
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                found = answer(*question)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
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
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))


if __name__ == "__main__":
    try:
        _serve(WORKS[sys.argv[1]])
    except (EOFError, KeyboardInterrupt):
        sys.exit()
