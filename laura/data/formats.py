"""What a row says: a conversation, a pair, or a text, under the names that people have for them.

`SHAPES` lists the fields that are known, in order: the first whose fields a row has is taken.
A recipe's `columns` says it for other names. A new shape is a line there.

    messages        [{"role": "user", "content": ...}, ...]        OpenAI, TRL
    conversations   [{"from": "human", "value": ...}, ...]         ShareGPT
    prompt, chosen  the chosen side of a preference, the rejected one is left   TRL
    prompt, completion; instruction (input), output; question, answer; ...      pairs, Alpaca
    text            running text

A prompt and an answer may be conversations themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laura.data.examples import Example
from laura.data.rows import field_names, kind_of, shortened
from laura.results.errors import DataError

ROLES = {
    "system": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Which fields of a row hold what.

    Attributes:
        messages: The whole conversation.
        prompt: What is asked, joined by a blank line; the first is needed, the others may be
            empty or absent.
        completion: What is answered.
        system: What stands before a conversation, where a row has it.
        text: Running text.
        joined: What stands between prompt and answer where both are running text; None for pairs.
    """

    messages: str = ""
    prompt: tuple[str, ...] = ()
    completion: str = ""
    system: str = "system"
    text: str = ""
    joined: str | None = None

    @property
    def needed(self) -> list[str]:
        """Fields that a row must have."""
        return [
            name for name in (self.messages, *self.prompt[:1], self.completion, self.text) if name
        ]

    def words(self) -> str:
        """What is read, for people: `instruction (input), output`."""
        rest = f" ({', '.join(self.prompt[1:])})" if self.prompt[1:] else ""
        asked = f"{self.prompt[0]}{rest}, " if self.prompt else ""
        return self.messages or self.text or f"{asked}{self.completion}"


SHAPES = (
    Columns(messages="messages"),
    Columns(messages="conversations"),
    Columns(prompt=("prompt",), completion="chosen"),
    Columns(messages="chosen"),
    Columns(prompt=("prompt",), completion="completion"),
    Columns(prompt=("instruction", "input"), completion="output"),
    Columns(prompt=("instruction", "input"), completion="response"),
    Columns(prompt=("prompt",), completion="response"),
    Columns(prompt=("question",), completion="answer"),
    Columns(prompt=("query",), completion="response"),
    Columns(prompt=("input",), completion="output"),
    Columns(text="text"),
)


def shape_of(row: Mapping[str, Any], place: str) -> Columns:
    """The shape of a row.

    Raises:
        DataError: it has the fields of none.
    """
    for shape in SHAPES:
        if all(name in row for name in shape.needed):
            return shape
    known = "; ".join(shape.words() for shape in SHAPES)
    raise DataError(
        f"{place}: has the fields {field_names(row)}; known are {known}. Rename them, or say "
        "which is which in the recipe, as in columns: {prompt: [question], completion: reply}"
    )


def example_of(row: Mapping[str, Any], columns: Columns | None, index: int, place: str) -> Example:
    """The example that a row holds.

    Args:
        row: The row.
        columns: Which fields hold what; None takes the shape that the row has.
        index: Its number.
        place: Where it stands, for messages.

    Raises:
        DataError: a field is missing, or holds something else.
    """
    columns = columns or shape_of(row, place)
    if missing := [name for name in columns.needed if name not in row]:
        raise DataError(
            f"{place}: lacks {', '.join(missing)}; has the fields {field_names(row)}. Name other "
            "columns, or fetch the file again"
        )
    if columns.text:
        return Example(index, (), _string(row[columns.text], columns.text, place))
    if columns.messages:
        said = _messages(row[columns.messages], columns.messages, place)
    elif columns.joined is not None:
        parts = [_string(row[n], n, place) for n in (columns.prompt[0], columns.completion)]
        return Example(index, (), columns.joined.join(parts))
    else:
        said = _pair(row, columns, place)
    system = row.get(columns.system)
    if system is not None and not any(role == "system" for role, _ in said):
        before = _string(system, columns.system, place)
        said = (*([("system", before)] if before.strip() else []), *said)
    return Example(index, said)


def is_blank(example: Example) -> bool:
    """Whether there is nothing to learn: blank text, or no answer with words in it."""
    answers = [content for role, content in example.messages if role == "assistant"]
    return not any(part.strip() for part in [example.text, *answers])


Messages = tuple[tuple[str, str], ...]


def _pair(row: Mapping[str, Any], columns: Columns, place: str) -> Messages:
    answer = row[columns.completion]
    if isinstance(answer, list):
        said = _messages(answer, columns.completion, place)
        if said[0][0] != "assistant":
            return said  # the conversation from its beginning
    else:
        said = (("assistant", _string(answer, columns.completion, place)),)
    name, *more = columns.prompt
    if isinstance(row[name], list):
        return (*_messages(row[name], name, place), *said)
    given = [name, *(other for other in more if row.get(other) is not None)]
    parts = [_string(row[one], one, place) for one in given]
    return (("user", "\n\n".join(part for part in parts if part.strip())), *said)


def _messages(value: object, field: str, place: str) -> Messages:
    if not isinstance(value, list) or not value:
        came = "an empty list" if value == [] else kind_of(value)
        raise DataError(f"{place}: {field} must be a list of {{role, content}}, came {came}")
    return tuple(_message(item, number, place) for number, item in enumerate(value))


def _message(item: object, number: int, place: str) -> tuple[str, str]:
    where = f"{place}: message {number}"
    known = set(item) if isinstance(item, dict) else set()
    names = ("role", "content") if {"role", "content"} <= known else ("from", "value")
    if not isinstance(item, dict) or not known.issuperset(names):
        came = f"the fields {field_names(item)}" if isinstance(item, dict) else kind_of(item)
        raise DataError(f"{where} must have role and content, came {came}")
    role, content = item[names[0]], item[names[1]]
    if item.get("tool_calls") or role in ("tool", "function_call", "observation"):
        raise DataError(
            f"{where} calls a tool or answers one; conversations with tools cannot be learnt yet: "
            "leave such rows out"
        )
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{where}: role must be {', '.join(ROLES)}, came {shortened(role)}")
    if isinstance(content, list):
        content = _joined_parts(content, where)
    return ROLES[role], _string(content, f"message {number}, {names[1]}", place)


def _joined_parts(parts: list[Any], where: str) -> str:
    """The text of a content that is a list of parts, as OpenAI has it."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or "text" not in part:
            raise DataError(
                f"{where}: content must be a string or a list of {{type: text, text}}, came a list "
                f"with {shortened(part)}"
            )
    return "".join(_string(part["text"], "text", where) for part in parts)


def _string(value: object, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {field} must be a string, came {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {field} holds half of a surrogate pair at character {error.start}, which "
            "is not text; write the file again from its origin"
        ) from error
    return value
