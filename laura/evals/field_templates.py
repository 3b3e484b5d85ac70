"""Small templates over a row's fields: `Question: {question}`, `{choices[text][0]}`.

Braces name a field, and square brackets what lies in it: a key of an object or a place
of a list, counted from 0. `{{` and `}}` are braces. There is nothing else: no
attributes, no formats, no expressions, so a template can do no harm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter
from typing import Any

_PATH = re.compile(r"(?P<name>[^\[\]{}!:]+)(?P<rest>(\[[^\[\]]+\])*)")


class FieldFault(ValueError):
    """A row lacks what a template names; the message says what, not where."""


@dataclass(frozen=True)
class FieldPath:
    """A field of a row, perhaps something in it: `choices[text]`."""

    text: str
    steps: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> FieldPath:
        """Read `name` or `name[key][0]`.

        Raises:
            ValueError: it is neither.
        """
        match = _PATH.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"{text!r} names no field; write a field's name, and [key] or [number] for what "
                "lies in it, as in choices[text][0]"
            )
        below = re.findall(r"\[([^\[\]]+)\]", match["rest"])
        return cls(text.strip(), (match["name"], *below))

    def value(self, row: dict[str, Any]) -> Any:
        """What stands there.

        Raises:
            FieldFault: nothing does.
        """
        place: Any = row
        for number, step in enumerate(self.steps):
            if isinstance(place, dict) and step in place:
                place = place[step]
            elif isinstance(place, list) and step.isdigit() and int(step) < len(place):
                place = place[int(step)]
            else:
                raise FieldFault(f"has no {self.text!r} ({_came(place, self.steps[:number])})")
        return place


@dataclass(frozen=True)
class Template:
    """Text with fields in it.

    Attributes:
        parts: Text and fields in turn.
    """

    parts: tuple[str | FieldPath, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template.

        Raises:
            ValueError: a brace is not closed, or braces hold no field.
        """
        parts: list[str | FieldPath] = []
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ or }}}} for a brace itself") from error
        for literal, name, form, conversion in pieces:
            if literal:
                parts.append(literal)
            if name is None:
                continue
            if form or conversion:
                raise ValueError(f"{{{name}}} has a format; only fields can stand in braces")
            parts.append(FieldPath.parse(name))
        return cls(tuple(parts))

    @property
    def lone(self) -> FieldPath | None:
        """The field, where the template is one and nothing else."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only if isinstance(only, FieldPath) else None

    def fill(self, row: dict[str, Any]) -> str:
        """The text of a row.

        Raises:
            FieldFault: a field is missing, or neither text nor a number.
        """
        return "".join(
            part if isinstance(part, str) else as_text(part.value(row), part.text)
            for part in self.parts
        )


def as_text(value: Any, name: str) -> str:
    """A field's value as text; numbers as JSON writes them.

    Raises:
        FieldFault: it is neither text nor a number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise FieldFault(f"needs {name!r} as text or a number, came {_short(value)}")


def _came(place: Any, above: tuple[str, ...]) -> str:
    where = "".join(f"[{step}]" if i else step for i, step in enumerate(above))
    start = f"{where} " if where else "its fields "
    if isinstance(place, dict):
        return f"{start}{'has' if where else 'are'} {', '.join(map(str, list(place)[:12]))}"
    if isinstance(place, list):
        return f"{start}is a list of {len(place)}"
    return f"{start}is {_short(place)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
