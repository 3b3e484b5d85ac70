"""A conversation with several models: each with its own history, stopped, failed, compared."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from laura.serve.chatting import (
    Chat,
    Member,
    Messages,
    Reply,
    Sampling,
    TextPart,
    Turn,
    difference,
    summary,
)


class Canned:
    """A panel that answers from a list, one answer a call."""

    def __init__(self, *answers: dict[str, Any], base: bool = True) -> None:
        self.members = [Member("base", base), Member("poet", False, None, ("beware",))]
        self.answers, self.heard = list(answers), []  # type: ignore[var-annotated]

    def ask(
        self, conversations: dict[str, Messages], sampling: Sampling, replies: dict[str, Reply]
    ) -> None:
        self.heard.append(conversations)
        for name, answer in self.answers.pop(0).items():
            if answer is KeyboardInterrupt:
                replies[name].text = "half an"
                raise KeyboardInterrupt
            replies[name].text, replies[name].finish = answer


def ask(chat: Chat, question: str) -> Turn:
    return chat.ask(question, lambda turn: None)


def contents(messages: Messages) -> list[str]:
    return [message["content"] for message in messages]


def test_each_model_is_reminded_of_its_own_answers_but_not_of_failures() -> None:
    whole = {"base": ("one", "stop"), "poet": ("two", "stop")}
    failed = {"base": ("three", "length"), "poet": ("fo", "failed")}
    panel = Canned(whole, failed, whole)
    chat = Chat(panel, Sampling())
    for question in ("a", "b", "c"):
        ask(chat, question)
    assert contents(panel.heard[2]["base"]) == ["a", "one", "b", "three", "c"]
    assert contents(panel.heard[2]["poet"]) == ["a", "two", "c"]
    assert [m["role"] for m in panel.heard[2]["poet"]] == ["user", "assistant", "user"]


def test_what_is_stopped_keeps_what_is_written() -> None:
    panel = Canned({"base": ("whole", "stop"), "poet": KeyboardInterrupt})
    turn = ask(Chat(panel, Sampling()), "a")
    assert turn.replies == {"base": Reply("whole", None, "stop"),
                            "poet": Reply("half an", None, "stopped")}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "answer", "kinds"),
    [
        (True, ("a red cat", "stop"), ["same", "added", "same"]),
        (True, ("a red", "stopped"), None),
        (True, ("", "failed"), None),
        (False, ("a red cat", "stop"), None),
    ],
)
def test_whole_answers_are_compared_with_the_bases(
    base: bool, answer: tuple[str, str], kinds: list[str] | None
) -> None:
    chat = Chat(Canned({"base": ("a cat", "stop"), "poet": answer}, base=base), Sampling(0.5, 9, 3))
    value = chat.to_json(ask(chat, "q"))
    assert json.loads(json.dumps(value)) == value
    assert value["sampling"] == {"temperature": 0.5, "max_tokens": 9, "seed": 3}
    own, other = value["answers"]
    assert own["difference"] is None and own["model"] == "base" and own["text"] == "a cat"
    assert other["warnings"] == ["beware"] and other["finish"] == answer[1]
    found = other["difference"]
    assert (found and [piece["kind"] for piece in found]) == kinds


def test_words_that_go_stand_before_those_that_come() -> None:
    assert difference("The cat sat on the mat.", "The cat sat on a golden mat.") == [
        TextPart("same", "The cat sat on", 4),
        TextPart("removed", " the", 1),
        TextPart("added", " a golden", 2),
        TextPart("same", " mat.", 2),
    ]


def test_pieces_hold_both_texts() -> None:
    draw = random.Random(0)
    for _ in range(300):
        before, after = (
            draw.choice(["", "\n"]) + " ".join(draw.choices(["a", "b", "c.", "ç", "猫"], k=9))
            for _ in range(2)
        )
        pieces = difference(before, after)
        assert "".join(piece.text for piece in pieces if piece.kind != "removed") == after
        kept = "".join(piece.text for piece in pieces if piece.kind != "added")
        assert kept.split() == before.split() or "".join(kept.split()) == "".join(before.split())


def test_counts_in_a_sentence() -> None:
    assert summary(difference("a b", "a b")) == "the same words as the base"
    told = "against the base: 1 words removed, 2 added, 1 the same"
    assert summary(difference("a b", "a c d")) == told
