"""One question to a base and adapters on it: conversations, answers, their differences. No torch.

Whoever answers, such as this process (`chat_in_process.py`), is a `Panel`. Each model keeps a
conversation of its own: it is reminded of its own answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal, Protocol

Finish = Literal["stop", "length", "stopped", "failed"]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: 0 takes the most likely token.
        max_tokens: Most new tokens of an answer.
        seed: Seed of the draws, the same for every model.
    """

    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Member:
    """A model that answers.

    Attributes:
        name: What it is called.
        is_base: Whether it is the base.
        record: Its `laura.json` in short (`library.short_record`), where it has one.
        warnings: What should be known before it is trusted.
    """

    name: str
    is_base: bool
    record: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass
class Reply:
    """An answer, as far as it is written.

    Attributes:
        text: The text so far.
        tokens: New tokens; None while or where that is not known.
        finish: "stop", "length", "stopped" (by who asked) or "failed"; None while in work.
        error: Why it failed.
    """

    text: str = ""
    tokens: int | None = None
    finish: Finish | None = None
    error: str = ""


class Panel(Protocol):
    """Models that can be asked together."""

    members: list[Member]

    def ask(
        self,
        conversations: dict[str, Messages],
        sampling: Sampling,
        replies: dict[str, Reply],
    ) -> None:
        """Answer every conversation; returns when all have ended.

        Args:
            conversations: Messages of each model; the last is the new question.
            sampling: How answers are drawn.
            replies: An empty reply for each model, filled as answers come.

        Raises:
            KeyboardInterrupt: stopped; what is written stands in `replies`.
            LauraError: none of them can be answered.
        """


@dataclass
class Turn:
    """A question, and the answer of every model that was asked."""

    question: str
    replies: dict[str, Reply]


@dataclass
class Chat:
    """A conversation with all models of a panel."""

    panel: Panel
    sampling: Sampling
    turns: list[Turn] = field(default_factory=list)

    @property
    def base(self) -> str | None:
        """Name of the base, where it is asked."""
        return next((one.name for one in self.panel.members if one.is_base), None)

    def ask(self, question: str, begun: Callable[[Turn], object]) -> Turn:
        """Put a question to every model.

        Args:
            question: The question.
            begun: Handed the turn before anything is written, to watch it grow.

        Returns:
            The turn, whole or, after Ctrl-C, as far as it is written. A reply of an earlier
            turn that failed is not told to its model again.
        """
        turn = Turn(question, {one.name: Reply() for one in self.panel.members})
        conversations = {name: self._messages(name, question) for name in turn.replies}
        begun(turn)
        try:
            self.panel.ask(conversations, self.sampling, turn.replies)
        except KeyboardInterrupt:
            for reply in turn.replies.values():
                reply.finish = reply.finish or "stopped"
        self.turns.append(turn)
        return turn

    def _messages(self, name: str, question: str) -> Messages:
        messages: Messages = []
        for turn in self.turns:
            reply = turn.replies[name]
            if reply.text and reply.finish != "failed":
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": reply.text})
        return [*messages, {"role": "user", "content": question}]

    def to_json(self, turn: Turn) -> dict[str, Any]:
        """A turn for machines: answers in the order of the members, with their differences."""
        own = turn.replies.get(self.base or "")
        return {
            "question": turn.question,
            "base": self.base,
            "sampling": asdict(self.sampling),
            "answers": [
                {
                    "model": one.name,
                    **asdict(turn.replies[one.name]),
                    "difference": _difference(own, turn.replies[one.name]),
                    "record": one.record,
                    "warnings": list(one.warnings),
                }
                for one in self.panel.members
            ],
        }


def comparable(base: Reply | None, reply: Reply) -> bool:
    """Whether a difference means something: two whole answers."""
    return base is not None and base is not reply and {base.finish, reply.finish} <= _WHOLE


_WHOLE = {"stop", "length"}


def _difference(base: Reply | None, reply: Reply) -> list[dict[str, Any]] | None:
    if base is None or not comparable(base, reply):
        return None
    return [asdict(piece) for piece in difference(base.text, reply.text)]


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
