"""One conversation or text, and what tells it from others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


class ExampleIdentity(Protocol):
    """What tells examples apart: of an example itself, or of one that lies on the disk."""

    @property
    def index(self) -> int:
        """Row number in its data file or split, counted from 0."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content exactly as it is, hexadecimal."""

    @property
    def normal_digest(self) -> str:
        """SHA-256 of the content in lower case with white space collapsed."""

    @property
    def prompt_digest(self) -> str:
        """Like `normal_digest`, of what comes before the first answer; empty if nothing does."""


@dataclass(frozen=True)
class Example:
    """One conversation or one text.

    Attributes:
        index: Row number in its data file or split, counted from 0.
        messages: Pairs of role (`system`, `user`, `assistant`) and content;
            empty for plain text.
        text: The text, where there are no messages.
    """

    index: int
    messages: tuple[tuple[str, str], ...]
    text: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content exactly as it is, hexadecimal."""
        return _hash([self.messages, self.text])

    @cached_property
    def normal_digest(self) -> str:
        """SHA-256 of the content in lower case with white space collapsed."""
        messages = [(role, _normal(content)) for role, content in self.messages]
        return _hash([messages, _normal(self.text)])

    @cached_property
    def prompt_digest(self) -> str:
        """Like `normal_digest`, of what comes before the first answer; empty if nothing does.

        System messages are left out: they are shared by many rows.
        """
        prompt: list[str] = []
        for role, content in self.messages:
            if role == "assistant":
                break
            if role == "user" and content.strip():
                prompt.append(_normal(content))
        return _hash(prompt) if prompt else ""


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _hash(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
