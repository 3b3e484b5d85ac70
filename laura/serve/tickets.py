"""The events of a sequence on their way back from an engine. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from laura.serve.engines import Ended, EngineError, Event

GONE = "the engine has stopped; try again in a moment"
"""What whoever asks an engine of this process hears when it has ended."""


class SequenceEvents(AsyncIterator[Event]):
    """The events of one sequence, in order; closing it, or losing it, cancels the sequence.

    Args:
        events: What comes, ending with `Ended` or an error.
        cancel: Called if the reader wants no more before that.
    """

    def __init__(
        self, events: asyncio.Queue[Event | EngineError], cancel: Callable[[], None]
    ) -> None:
        self._events, self._when_cancelled, self._done = events, cancel, False

    async def __anext__(self) -> Event:
        if self._done:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except BaseException:
            self._cancel()
            raise
        if isinstance(event, EngineError):
            self._done = True
            raise event
        self._done = isinstance(event, Ended)
        return event

    async def aclose(self) -> None:
        """Cancel the sequence, unless it has ended."""
        self._cancel()

    def __del__(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if not self._done:
            self._done = True
            self._when_cancelled()


def call(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *given: object) -> None:
    """Have something done in a loop, from any thread; nothing happens if it is closed."""
    try:
        loop.call_soon_threadsafe(work, *given)
    except RuntimeError:  # closed: nobody listens any more
        return
