"""Tools: what a model is told of them, and which it calls in what it writes.

Formats are those in which models were trained to call. Tagged, of Hermes and Qwen:

    <tool_call>
    {"name": "add", "arguments": {"a": 1}}
    </tool_call>

Bare, of Llama 3 (`parameters` for `arguments`, `;` between calls) and, in a list, of Mistral: the
answer is the call. A call that is required is written by a grammar, as a bare list.

A base whose template knows no tools is told of them in Hermes's words.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from laura.engine.requests import Grammar

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Signs of a template: what its model writes before a call, or is told to write.
# Special tokens, so they do not stand in its text.
BARE_SIGNS = ("[TOOL_CALLS]", "<|python_tag|>", '"parameters": dictionary of argument name')
Format = Literal["tagged", "bare"]
# Of a function that names no parameters, as OpenAI has it.
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
SYSTEM = """\
You may call functions:
{tools}
Call with <tool_call>
{{"name": NAME, "arguments": OBJECT}}
</tool_call>"""
_BEFORE, _BEHIND = re.compile(r"[\s\[,;]*"), re.compile(r"[\s\]},;]*")
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([\w-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
LONGEST_HEAD = 512


def knows_tools(template: str) -> bool:
    """Whether a chat template writes tools."""
    return "tools" in template


def format_of(template: str) -> Format | None:
    """How a base calls tools by its template; None where it does so in a way that is not known."""
    if OPEN in template or not knows_tools(template):
        return None if "<function=" in template else "tagged"
    return "bare" if any(sign in template for sign in BARE_SIGNS) else None


def in_words(messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages and tools for a template that knows only texts."""
    plain = []
    for one in messages:
        role, text = one["role"], one["content"] or ""
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        calls = (json.dumps(call["function"]) for call in one.get("tool_calls", ()))
        text = "\n".join(filter(None, [text, *(f"{OPEN}\n{call}\n{CLOSE}" for call in calls)]))
        plain.append({"role": role, "content": text})
    if tools:
        told = SYSTEM.format(tools="\n".join(json.dumps(one["function"]) for one in tools))
        if plain[0]["role"] == "system":
            told = f"{plain.pop(0)['content']}\n\n{told}"
        plain.insert(0, {"role": "system", "content": told})
    return plain


def calls_grammar(functions: Sequence[tuple[str, dict[str, Any]]], most: int | None) -> Grammar:
    """Of an answer that calls functions and says nothing else.

    Args:
        functions: Name and JSON schema of the arguments of each.
        most: Most calls.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": {"$ref": f"#/$defs/{name}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, _ in functions
    ]
    schema: dict[str, Any] = {
        "$defs": {name: _below(given, name) for name, given in functions},
        "type": "array",
        "items": {"anyOf": calls},
        "minItems": 1,
    }
    if most is not None:
        schema["maxItems"] = most
    return Grammar.of_schema(schema)


def _below(schema: Any, name: str) -> Any:
    """A schema whose references stay its own where it is a part of another."""
    if isinstance(schema, list):
        return [_below(one, name) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _below(value, name) for key, value in schema.items()}
    own = found.get("$ref")
    if isinstance(own, str) and own.startswith("#"):
        found["$ref"] = f"#/$defs/{name}{own[1:]}"
    return found


@dataclass(frozen=True)
class CallPart:
    """What has been added to a call.

    Attributes:
        index: Which call of the answer, counted from 0.
        id, name: Of a call that begins.
        arguments: Further text of its arguments.
    """

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


State = Callable[[bool], Iterator[str | CallPart]]


class CallScanner:
    """Tells text and calls apart while an answer comes.

    Args:
        form: How the model calls.
        most: Most calls; those that come after are dropped.
    """

    def __init__(self, form: Format, most: int | None = None) -> None:
        self._tagged, self._most = form == "tagged", most
        self._state: State = self._text if self._tagged else self._first
        self._held, self._calls = "", 0
        # Of a call that may have begun: where it begins, what was looked at, and its end.
        self._start, self._seen, self._value = 0, 0, _Value()

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._calls > 0

    def feed(self, text: str) -> list[str | CallPart]:
        """What stands for good after further text."""
        self._held += text
        return list(self._found(last=False))

    def rest(self) -> list[str | CallPart]:
        """What is left at the end."""
        return list(self._found(last=True))

    def _found(self, last: bool) -> Iterator[str | CallPart]:
        while True:
            before = self._state, self._held
            for piece in self._state(last):
                if isinstance(piece, CallPart):
                    if self._most is None or piece.index < self._most:
                        yield piece
                elif piece and not (self.called and piece.isspace()):
                    yield piece
            if (self._state, self._held) == before:
                return

    def _text(self, last: bool) -> Iterator[str | CallPart]:
        text, tag, _ = self._held.partition(OPEN)
        if tag:
            # The line before a call is no part of what is said.
            yield text.rstrip()
            self._go(self._head, len(text) + len(tag))
            return
        held = 0 if last else _begun(text, OPEN)
        if not last:
            held = max(held, len(text) - len(text[: len(text) - held].rstrip()))
        self._held = text[len(text) - held :]
        yield text[: len(text) - held]

    def _first(self, last: bool) -> Iterator[str | CallPart]:
        if self._held.strip():
            bare = self._held.lstrip().startswith(("{", "["))
            self._state = self._head if bare else self._said
        yield from ()

    def _said(self, last: bool) -> Iterator[str | CallPart]:
        text, self._held = self._held, ""
        yield text

    def _head(self, last: bool) -> Iterator[str | CallPart]:
        if not self._seen:
            before = _BEFORE.match(self._held)
            self._seen = before.end() if before else 0
            self._start = self._seen
        start = self._start
        head = _HEAD.match(self._held, start) if len(self._held) < LONGEST_HEAD + start else None
        if head is not None:
            self._go(self._arguments, head.end())
            yield self._begin(head[1], "")
            return
        begun = self._held[start : start + 1]
        end = self._value.end(self._held[self._seen :]) if begun == "{" else None
        if end is None and begun in ("", "{") and not last:
            self._seen = len(self._held) if begun else 0
            return
        stop = self._seen + (end or 0)
        if (call := _call(self._held[start:stop])) is not None:
            self._go(self._tail, stop)
            yield self._begin(*call)
            return
        # It was no call.
        yield (OPEN if self._tagged else "") + self._held
        self._go(self._text if self._tagged else self._said, len(self._held))

    def _go(self, state: State, past: int) -> None:
        self._state, self._held = state, self._held[past:]
        self._seen, self._value = 0, _Value()

    def _begin(self, name: str, arguments: str) -> CallPart:
        self._calls += 1
        # Mistral's template wants nine letters and digits.
        return CallPart(self._calls - 1, arguments, secrets.token_hex(5)[:9], name)

    def _arguments(self, last: bool) -> Iterator[str | CallPart]:
        end = self._value.end(self._held)
        if part := self._held[:end]:
            yield CallPart(self._calls - 1, part)
        if end is None:
            self._held = ""
        else:
            self._go(self._tail, end)

    def _tail(self, last: bool) -> Iterator[str | CallPart]:
        if self._tagged:
            before, tag, _ = self._held.partition(CLOSE)
            if tag:
                self._go(self._text, len(before) + len(tag))
        elif behind := _BEHIND.match(self._held):
            rest = self._held[behind.end() :]
            self._go(self._head if rest[:1] == "{" else self._tail, behind.end())
        yield from ()


class _Value:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False

    def end(self, text: str) -> int | None:
        """Where it ends in the next piece; None where it goes on."""
        for place, sign in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif sign == "\\":
                    self._escaped = True
                elif sign == '"':
                    self._quoted = False
            elif sign == '"':
                self._quoted = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1
        return None


def _call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call in another order than the usual one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(name := found.get("name"), str):
        return None
    given = found.get("arguments", found.get("parameters", {}))
    return name, given if isinstance(given, str) else json.dumps(given)


def _begun(text: str, tag: str) -> int:
    """Letters at the end of a text that a tag may begin with."""
    most = min(len(tag) - 1, len(text))
    return next((count for count in range(most, 0, -1) if tag.startswith(text[-count:])), 0)
