"""`laura chat`: once with --prompt, in a loop, through a server, and the mistakes it tells."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from laura.cli import app as cli
from tests.serve.page_server import ANSWERS, BASE, KEY, POET, QUESTION, Behaviour, served

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def behaviour() -> Behaviour:
    found = Behaviour()
    found.ready.set()
    return found


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    with served(behaviour) as address:
        yield address


def chat(*words: str, questions: str | None = None, **options: Any) -> Result:
    return CliRunner().invoke(cli.app, ["chat", *words], input=questions, **options)


def test_one_question_through_a_server_for_machines(url: str, behaviour: Behaviour) -> None:
    behaviour.needs_keys = True
    ended = chat("--url", url, "--prompt", QUESTION, "--seed", "3", "--json",
                 env={"LAURA_API_KEY": KEY})  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    value = json.loads(ended.stdout)
    assert value["base"] == BASE and value["question"] == QUESTION
    assert {one["model"]: one["text"] for one in value["answers"]} == ANSWERS
    kinds = [piece["kind"] for piece in value["answers"][1]["difference"]]
    assert kinds == ["same", "removed", "added", "same", "removed", "same"]
    assert value["answers"][1]["record"]["arm"] == "lora-all"
    assert "\u202e" not in ended.stdout
    assert behaviour.asked[0][1]["seed"] == 3


def test_one_question_for_a_person(url: str) -> None:
    ended = chat("--url", url, "--model", BASE, "--model", POET, "--prompt", QUESTION,
                 env={"COLUMNS": "200"})  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    assert ANSWERS[BASE] in ended.stdout
    assert "The cat sat on [-the-] {+a golden+} mat. It slept [-well-]." in ended.stdout


def test_questions_until_the_input_ends(url: str, behaviour: Behaviour) -> None:
    ended = chat("--url", url, "--model", BASE, questions="first\n\nsecond\n/clear\nthird\n")
    assert ended.exit_code == 0, ended.stderr
    assert "/clear begins anew, Ctrl-D leaves" in ended.stdout
    asked = [[m["content"] for m in body["messages"]] for _, body in behaviour.asked]
    assert asked == [["first"], ["first", ANSWERS[BASE], "second"], ["third"]]


def test_a_model_that_fails(url: str, behaviour: Behaviour) -> None:
    behaviour.failing = POET
    ended = chat("--url", url, "--model", BASE, "--model", POET, "--prompt", QUESTION)
    assert ended.exit_code == 2 and "failed: the engine has stopped" in ended.stdout
    assert ANSWERS[BASE] in ended.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give either BASE"),
        (("micro", "--url", "http://127.0.0.1:9"), "give either BASE"),
        (("--url", "http://127.0.0.1:9", "--adapter", "."), "choose by --model"),
        (("micro", "--model", "x"), "--model is for --url"),
        (("micro", "--json"), "--json needs --prompt"),
        (("micro", "--prompt", " "), "--prompt is empty"),
        (("micro", "--adapter", "nowhere", "--prompt", "x"), "there is no folder nowhere"),
        (("--url", "http://127.0.0.1:9", "--prompt", "x"), "start `laura serve`, or mend --url"),
    ],
)
def test_mistakes(words: tuple[str, ...], told: str) -> None:
    ended = chat(*words)
    assert ended.exit_code == 2 and told in ended.stderr


def test_the_micro_base_in_this_process() -> None:
    ended = chat("micro", "--prompt", "Where does Ada live?", "--max-tokens", "8",
                 "--device", "cpu", "--json")  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    value = json.loads(ended.stdout)
    assert [one["model"] for one in value["answers"]] == ["base"] == [value["base"]]
    assert 1 <= value["answers"][0]["tokens"] <= 8


class Terminal:
    """`laura chat` on a terminal of its own; at the end of the block it is gone."""

    def __init__(self, *words: str) -> None:
        self.end, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "laura", "chat", *words],
            cwd=ROOT,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        )
        os.close(other)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while text not in self.seen:
            self.seen += self._read(until).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def ended(self, seconds: float = 20) -> int:
        """Its exit code; what it still writes must be read, for it waits until it is."""
        until = time.monotonic() + seconds
        with suppress(OSError):
            while self._read(until):
                pass
        return self.process.wait(seconds)

    def _read(self, until: float) -> bytes:
        ready, _, _ = select.select([self.end], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"it is silent for long, after {self.seen!r}"
        return os.read(self.end, 4096)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *words: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(url: str, behaviour: Behaviour) -> None:
    with Terminal("--url", url, "--model", BASE, "--model", POET) as terminal:
        terminal.wait_for("> ")
        terminal.type("Write for ever\r")
        terminal.wait_for("word word word")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        assert behaviour.broken_off.wait(10)
        terminal.wait_for("> ")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.type(f"{QUESTION}\r")
        terminal.wait_for("10 tokens")
        terminal.wait_for("> ")
        terminal.type("\x1b[A\r")  # the arrow brings the last question back
        terminal.wait_for("10 tokens")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    asked = [body["messages"][-1]["content"] for _, body in behaviour.asked]
    assert asked == ["Write for ever"] * 2 + [QUESTION] * 4


# Right behind the prompt readline does not notice it; later it does.
@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.0, 0.0, 0.5])
def test_the_polite_signal_to_end_ends_it(url: str, pause: float) -> None:
    with Terminal("--url", url, "--model", BASE) as terminal:
        terminal.wait_for("> ")
        time.sleep(pause)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 130


@pytest.mark.slow
def test_the_polite_signal_ends_an_answer_too(url: str, behaviour: Behaviour) -> None:
    with Terminal("--url", url, "--model", BASE) as terminal:
        terminal.wait_for("> ")
        terminal.type("Write for ever\r")
        terminal.wait_for("word word word")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 130
    assert behaviour.broken_off.wait(10)
