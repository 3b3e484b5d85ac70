"""What `laura chat` prints: side by side or one under another, marked, and never obeyed."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from laura.cli.chat_screen import drawn, growing, introduction
from laura.serve.chatting import Chat, Member, Reply, Sampling, Turn
from tests.serve.page_server import RECORD

MEMBERS = [
    Member("base", True),
    Member("po\x1b[2Jet", False, RECORD, ("[bold]beware\x07[/bold]",)),
    Member("plain", False),
]


class Nobody:
    members = MEMBERS

    def ask(self, *words: object) -> None: ...


def shown(what: RenderableType, width: int, terminal: bool = False) -> str:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False, force_terminal=terminal).print(what)
    return text.getvalue()


def turn(*replies: Reply) -> Turn:
    return Turn("q", dict(zip((one.name for one in MEMBERS), replies, strict=False)))


def test_answers_stand_side_by_side_where_there_is_room() -> None:
    chat = Chat(Nobody(), Sampling())
    asked = turn(Reply("the cat sat", 3, "stop"), Reply("the dog sat", 3, "length"))
    wide, narrow = (shown(drawn(chat, asked, width), width) for width in (130, 60))
    assert any("the cat sat" in line and "the dog sat" in line for line in wide.splitlines())
    assert not any("cat" in line and "dog" in line for line in narrow.splitlines()[:3])
    for text in (wide, narrow):
        assert "the [-cat-] {+dog+} sat" in text
        assert "against the base: 1 words removed, 1 added, 2 the same" in text
        assert "cut at --max-tokens, 3 tokens" in text


def test_what_is_unfinished_or_failed_is_not_compared() -> None:
    chat = Chat(Nobody(), Sampling())
    asked = turn(Reply("a", 1, "stop"), Reply("b", None, "stopped"), Reply("", None, "failed", "x"))
    text = shown(drawn(chat, asked, 130), 130)
    assert "stopped" in text and "failed: x" in text and "[-" not in text
    same = shown(drawn(chat, turn(Reply("a", 1, "stop"), Reply("a", 1, "stop")), 100), 100)
    assert "the same words as the base" in same and "{+" not in same


def test_texts_of_others_are_not_obeyed() -> None:
    chat = Chat(Nobody(), Sampling())
    asked = turn(Reply("a\x1b[31m", 1, "stop"), Reply("[red]b[/red] \u202ec", 1, "stop"))
    text = shown(drawn(chat, asked, 130), 130) + shown(introduction(MEMBERS), 130)
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
