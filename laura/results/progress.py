"""How long work reports itself, without knowing who listens.

Library code never prints. It receives a `Progress` and tells it what it does;
the door hands in one that draws bars with the time left, tests hand in nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One piece of long work with a known size."""

    def advance(self, amount: float = 1.0) -> None:
        """Count `amount` more units as done."""

    def note(self, text: str) -> None:
        """Show a short remark beside the bar, such as the current loss."""


class Progress(Protocol):
    """Where long work is reported."""

    def bar(self, title: str, total: float, unit: str = "") -> AbstractContextManager[Bar]:
        """Open a bar for `total` units (infinite if not known); use as a context manager."""

    def say(self, text: str) -> None:
        """Tell the user one line that stays."""


class _SilentBar:
    def advance(self, amount: float = 1.0) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """A `Progress` that says nothing; the default of every library call."""

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar that nobody sees."""
        yield _SilentBar()

    def say(self, text: str) -> None:
        """Drop the line."""


SILENT = Silent()


def duration_text(seconds: float | None) -> str:
    """Time as `m:ss` or `h:mm:ss`; `-:--` where it is not known."""
    if seconds is None:
        return "-:--"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
