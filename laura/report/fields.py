"""Typed reading of a JSON object, with errors that name the place of the fault."""

from __future__ import annotations

import math
from typing import Any

from laura.errors import StoreError


class Fields:
    """A JSON object whose fields are read by kind.

    A plain reader (`text`, `number`) demands its field; an `optional_` reader
    gives None where the field is absent or null. A field of the wrong kind is
    an error in both.
    """

    def __init__(self, value: Any, path: str, source: str) -> None:
        self._path = path
        self._source = source
        if not isinstance(value, dict):
            self._refuse("", value, "an object")
        self._value: dict[str, Any] = value

    @property
    def names(self) -> list[str]:
        """Names of the fields there are, in file order."""
        return list(self._value)

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self._value.get(name)
        if not isinstance(value, str):
            self._refuse(name, value, "text")
        return str(value)

    def optional_text(self, name: str, default: str = "") -> str:
        """A field that is text, or the default where it is absent or null."""
        return default if self._value.get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        """A field that must be a finite number."""
        value = self._value.get(name)
        if not _is_number(value):
            self._refuse(name, value, "a finite number")
        return float(value)  # type: ignore[arg-type]

    def optional_number(self, name: str) -> float | None:
        """A field that is a finite number, or None where it is absent or null."""
        return None if self._value.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """A field that is true or false; absent or null counts as false."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return bool(value)

    def sequence(self, name: str) -> list[Any]:
        """A field that is a list; absent or null counts as empty."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, list):
            self._refuse(name, value, "a list")
        return list(value or [])

    def texts(self, name: str) -> list[str]:
        """A field that is a list of texts."""
        values = self.sequence(name)
        for place, value in enumerate(values):
            if not isinstance(value, str):
                self._refuse(f"{name}[{place}]", value, "text")
        return [str(value) for value in values]

    def numbers(self, name: str) -> list[float]:
        """A field that is a list of finite numbers."""
        values = self.sequence(name)
        for place, value in enumerate(values):
            if not _is_number(value):
                self._refuse(f"{name}[{place}]", value, "a finite number")
        return [float(value) for value in values]

    def interval(self, name: str = "interval") -> tuple[float | None, float | None] | None:
        """A field that is two numbers, each null where it is open; None where it is absent."""
        values = self.sequence(name)
        for place, value in enumerate(values):
            if value is not None and not _is_number(value):
                self._refuse(f"{name}[{place}]", value, "a finite number or null")
        if len(values) not in (0, 2):
            self._refuse(name, values, "two numbers")
        return (values[0], values[1]) if values else None

    def nested(self, name: str) -> Fields:
        """A field that is an object; absent or null counts as empty."""
        value = self._value.get(name)
        return Fields({} if value is None else value, self._join(name), self._source)

    def nested_list(self, name: str) -> list[Fields]:
        """A field that is a list of objects."""
        return [
            Fields(value, f"{self._join(name)}[{place}]", self._source)
            for place, value in enumerate(self.sequence(name))
        ]

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._value.get(name) is not None

    def plain(self) -> dict[str, Any]:
        """The object as it came, for fields that are only shown."""
        return dict(self._value)

    def demand(self, *names: str) -> None:
        """Refuse an object that lacks one of these fields altogether."""
        for name in names:
            if name not in self._value:
                self._refuse(name, None, "a value")

    def _join(self, name: str) -> str:
        return ".".join(part for part in (self._path, name) if part)

    def _refuse(self, name: str, value: Any, wanted: str) -> None:
        came = "is missing" if value is None else f"is {_short(value)}"
        place = self._join(name) or "the file"
        raise StoreError(
            f"{self._source} is damaged: {place} {came}, {wanted} is needed. Delete the file and "
            "give the command that made it again (`laura compare`); finished runs are kept"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
