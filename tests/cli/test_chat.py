"""`laura chat`: once, in a loop, on a terminal; what it prints, and the mistakes it tells."""

from __future__ import annotations

import io
import json
import signal
import time
from typing import Any

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner, Result

from laura.cli import app as cli
from laura.cli.chat_screen import drawn, growing, introduction
from laura.serve.chatting import Chat, Member, Reply, Sampling, Turn
from tests.cli.panel import BASE, ENDLESS, RECORD, Panel
from tests.cli.terminal import Terminal

MEMBERS = [
    Member("base", True),
    Member("po\x1b[2Jet", False, RECORD, ("[bold]beware\x07[/bold]",)),
    Member("plain", False),
]


class Nobody(Panel):
    def __init__(self) -> None:
        self.members = MEMBERS


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> type[Panel]:
    class Fresh(Panel):
        """A class of its own, as what it was asked stands in it."""

    monkeypatch.setattr("laura.serve.chat_in_process.LoadedPanel", Fresh)
    return Fresh


def chat(*words: str, questions: str | None = None, **options: Any) -> Result:
    return CliRunner().invoke(cli.app, ["chat", *words], input=questions, **options)


def test_one_question_for_machines(panel: type[Panel]) -> None:
    ended = chat("micro", "--prompt", "hello", "--seed", "3", "--json")
    assert ended.exit_code == 0, ended.stderr
    value = json.loads(ended.stdout)
    assert (value["base"], value["question"], value["sampling"]["seed"]) == ("base", "hello", 3)
    base, poet = value["answers"]
    assert (base["text"], base["difference"]) == (BASE, None)
    kinds = [piece["kind"] for piece in poet["difference"]]
    assert kinds == ["same", "removed", "added", "same", "added", "same"]
    assert poet["record"] == RECORD


def test_one_question_for_a_person(panel: type[Panel]) -> None:
    ended = chat("micro", "--prompt", "hello", env={"COLUMNS": "200"})
    assert ended.exit_code == 0, ended.stderr
    assert BASE in ended.stdout
    assert "the [-cat-] {+dog+} sat on {+1+} the mat" in ended.stdout


def test_questions_until_the_input_ends(panel: type[Panel]) -> None:
    ended = chat("micro", questions="first\n\nsecond\n/clear\nthird\n")
    assert ended.exit_code == 0, ended.stderr
    assert "/help tells the commands, Ctrl-D leaves" in ended.stdout
    asked = [[m["content"] for m in one["base"]] for one in panel.asked]
    assert asked == [["first"], ["first", BASE, "second"], ["third"]]


def test_help_and_unknown_commands_are_answered_by_the_chat_itself(panel: type[Panel]) -> None:
    ended = chat("micro", questions="/help\n/halp me\nhello\n/quit\nnever asked\n")
    assert ended.exit_code == 0, ended.stderr
    told = ended.stdout.index("/clear   begin anew")
    assert told < ended.stdout.index("There is no command /halp.")
    asked = [[m["content"] for m in one["base"]] for one in panel.asked]
    assert asked == [["hello"]], "nothing else is asked of a model"


def test_a_model_that_fails(panel: type[Panel]) -> None:
    panel.failing = True
    ended = chat("micro", "--prompt", "hello")
    assert ended.exit_code == 2 and "failed: the engine has stopped" in ended.stdout
    assert BASE in ended.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "BASE"),
        (("micro", "--json"), "--json needs --prompt"),
        (("micro", "--prompt", " "), "--prompt is empty"),
        (("micro", "--adapter", "nowhere", "--prompt", "x"), "there is no folder nowhere"),
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


# ----- what is printed -----


def shown(what: RenderableType, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(what)
    return text.getvalue()


def turn(*replies: Reply) -> Turn:
    return Turn("q", dict(zip((one.name for one in MEMBERS), replies, strict=False)))


def test_answers_stand_side_by_side_where_there_is_room() -> None:
    talk = Chat(Nobody(), Sampling())
    asked = turn(Reply("the cat sat", 3, "stop"), Reply("the dog sat", 3, "length"))
    wide, narrow = (shown(drawn(talk, asked, width), width) for width in (130, 60))
    assert any("the cat sat" in line and "the dog sat" in line for line in wide.splitlines())
    assert not any("cat" in line and "dog" in line for line in narrow.splitlines()[:3])
    for text in (wide, narrow):
        assert "the [-cat-] {+dog+} sat" in text
        assert "against the base: 1 words removed, 1 added, 2 the same" in text
        assert "cut at --max-tokens, 3 tokens" in text


def test_what_is_unfinished_or_failed_is_not_compared() -> None:
    talk = Chat(Nobody(), Sampling())
    asked = turn(Reply("a", 1, "stop"), Reply("b", None, "stopped"), Reply("", None, "failed", "x"))
    text = shown(drawn(talk, asked, 130), 130)
    assert "stopped" in text and "failed: x" in text and "[-" not in text
    same = shown(drawn(talk, turn(Reply("a", 1, "stop"), Reply("a", 1, "stop")), 100), 100)
    assert "the same words as the base" in same and "{+" not in same


def test_texts_of_others_are_not_obeyed() -> None:
    talk = Chat(Nobody(), Sampling())
    asked = turn(Reply("a\x1b[31m", 1, "stop"), Reply("[red]b[/red] \u202ec", 1, "stop"))
    text = shown(drawn(talk, asked, 130), 130) + shown(introduction(MEMBERS), 130)
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "po\\x1b[2Jet" in text and "[red]b[/red]" in text and "[bold]beware\\x07[/bold]" in text


def test_the_record_of_each_adapter_is_told() -> None:
    text = shown(introduction(MEMBERS), 150)
    assert "learned +20.0 ± 1.0 points on gsm8k, 95 % interval 10.0 to 30.0, seeds: 3" in text
    assert "forgot -1.2 ± 0.5 points on hellaswag, 95 % interval -3.0 to 1.0, seeds: 3" in text
    assert "claims: 1 supported, 1 undecided" in text
    assert "plain  no laura.json" in text


def test_the_last_lines_are_seen_while_they_grow() -> None:
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True)
    asked = turn(Reply("\n".join(f"line {i}" for i in range(50))), Reply())
    with growing(console, asked):
        pass
    assert "line 49" in text.getvalue() and "line 30" not in text.getvalue()
    assert "…" in text.getvalue()
    with growing(Console(file=(plain := io.StringIO())), asked):
        pass
    assert plain.getvalue() == ""


# ----- on a terminal -----


def conversation() -> Terminal:
    return Terminal("tests.cli.panel")


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves() -> None:
    with conversation() as terminal:
        terminal.wait_for("> ")
        terminal.type(f"{ENDLESS}\r")
        terminal.wait_for("word word word")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        terminal.wait_for("> ")
        terminal.press_until("\x03", "Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.type("hello\r")
        terminal.wait_for("7 tokens")
        terminal.wait_for("> ")
        terminal.type("\x1b[A\r")  # the arrow brings the last question back
        terminal.wait_for("7 tokens")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0


# Right behind the prompt readline does not notice it; later it does.
@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.0, 0.0, 0.5])
def test_the_polite_signal_to_end_ends_it(pause: float) -> None:
    with conversation() as terminal:
        terminal.wait_for("> ")
        time.sleep(pause)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 130


@pytest.mark.slow
def test_the_polite_signal_ends_an_answer_too() -> None:
    with conversation() as terminal:
        terminal.wait_for("> ")
        terminal.type(f"{ENDLESS}\r")
        terminal.wait_for("word word word")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 130
