"""An ask on its way through the engine, and its events on their way back. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from laura.serve.engines import AdapterFiles, Ask, Ended, EngineError, Event

GONE = "the engine has stopped; try again in a moment"
"""What whoever asks an engine of this process hears when it has ended."""


class Ticket:
    """An ask and the events that came for it.

    Args:
        ask: What is wanted.
        adapter: Its checked adapter.
        loop: Where its events are read.
    """

    def __init__(
        self, ask: Ask, adapter: AdapterFiles | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.ask, self.adapter, self.loop = ask, adapter, loop
        self.events: asyncio.Queue[Event | EngineError] = asyncio.Queue()


class Events(AsyncIterator[Event]):
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


News = tuple[Ticket, Event | EngineError]


def deliver(news: Iterable[News]) -> None:
    """Hand events to those who wait for them, from any thread; one call a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[News]] = {}
    for ticket, event in news:
        by_loop.setdefault(ticket.loop, []).append((ticket, event))
    for loop, own in by_loop.items():
        call(loop, _put_all, own)


def call(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *given: object) -> None:
    """Have something done in a loop, from any thread; nothing happens if it is closed."""
    try:
        loop.call_soon_threadsafe(work, *given)
    except RuntimeError:  # closed: nobody listens any more
        return


def _put_all(news: list[News]) -> None:
    for ticket, event in news:
        ticket.events.put_nowait(event)
