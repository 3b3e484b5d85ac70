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


class Within:
    """A `Progress` in which a bar of one title also moves a bar around it.

    Args:
        progress: Where everything is reported.
        title: Title of the bar that counts.
        around: The bar around it.
        share: How far that one moves while the other goes from its beginning to its end.
    """

    def __init__(self, progress: Progress, title: str, around: Bar, share: float) -> None:
        self._progress, self._title, self._around, self._share = progress, title, around, share

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar."""
        with self._progress.bar(title, total, unit) as bar:
            if title != self._title or not total:
                yield bar
                return
            both = _BothBars(bar, self._around, self._share / total)
            yield both
            self._around.advance(self._share - both.moved)  # it may end before its total

    def say(self, text: str) -> None:
        """Tell the line."""
        self._progress.say(text)


class _BothBars:
    def __init__(self, inner: Bar, around: Bar, factor: float) -> None:
        self._inner, self._around, self._factor = inner, around, factor
        self.note, self.moved = inner.note, 0.0

    def advance(self, amount: float = 1.0) -> None:
        self._inner.advance(amount)
        self._around.advance(amount * self._factor)
        self.moved += amount * self._factor


def duration_text(seconds: float | None) -> str:
    """Time as `m:ss` or `h:mm:ss`; `-:--` where it is not known."""
    if seconds is None:
        return "-:--"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
