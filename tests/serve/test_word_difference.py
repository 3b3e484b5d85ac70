"""Differences by words: whole, ordered, and blind to white space alone."""

from __future__ import annotations

import random

from laura.serve.chatting import TextPart, difference, summary


def test_words_that_go_stand_before_those_that_come() -> None:
    assert difference("The cat sat on the mat.", "The cat sat on a golden mat.") == [
        TextPart("same", "The cat sat on", 4),
        TextPart("removed", " the", 1),
        TextPart("added", " a golden", 2),
        TextPart("same", " mat.", 2),
    ]


def test_nothing_and_white_space_alone() -> None:
    assert difference("", "") == []
    assert difference("", "x") == [TextPart("added", "x", 1)]
    assert difference("x", "") == [TextPart("removed", "x", 1)]
    assert [piece.kind for piece in difference("a  b", "a\nb")] == ["same"]
    assert difference("猫は", "犬は") == [
        TextPart("removed", "猫", 1), TextPart("added", "犬", 1), TextPart("same", "は", 1)
    ]  # fmt: skip


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
