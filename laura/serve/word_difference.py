"""What differs between two answers, word by word. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

# A word with the white space before it; a sign, and a sign of a script without spaces, alone.
_WORD = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|\S)|\s+$")


@dataclass(frozen=True)
class TextPart:
    """Words in a row that share their lot."""

    kind: Literal["same", "removed", "added"]
    text: str
    words: int


def difference(before: str, after: str) -> list[TextPart]:
    """What turns one text into another.

    Pieces that are the same or added, joined, are `after`, character by character. White
    space alone is no difference. What goes stands before what comes in its place.

    Example:
        "a cat sat" to "a dog sat": same "a", removed " cat", added " dog", same " sat".
    """
    return list(_pieces(_WORD.findall(before), _WORD.findall(after)))


def _pieces(old: list[str], fresh: list[str]) -> Iterator[TextPart]:
    matcher = SequenceMatcher(
        None, [word.strip() for word in old], [word.strip() for word in fresh], autojunk=False
    )
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            yield TextPart("same", "".join(fresh[k:m]), m - k)
            continue
        if i < j:
            yield TextPart("removed", "".join(old[i:j]), j - i)
        if k < m:
            yield TextPart("added", "".join(fresh[k:m]), m - k)


def summary(pieces: list[TextPart]) -> str:
    """Counts of words, in a sentence."""
    same, removed, added = (
        sum(piece.words for piece in pieces if piece.kind == kind)
        for kind in ("same", "removed", "added")
    )
    if not removed and not added:
        return "the same words as the base"
    return f"against the base: {removed} words removed, {added} added, {same} the same"
