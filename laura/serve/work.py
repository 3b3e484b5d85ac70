"""The sequences of one request while an engine works on them, merged into one series."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence

from laura.serve.context import RequestContext
from laura.serve.engines import Ended, EngineError, Event
from laura.serve.errors import ApiError, of_engine

Told = tuple[int, Event]
"""Which sequence, counted from 0, and what happened to it."""


class Work:
    """Reads several series of events side by side.

    Args:
        context: Told of every event.
        streams: One a sequence, as `ServingEngine.submit` gave them. Each is closed when
            this is, whatever happens.
        seconds: All must be answered within this time.
        done: Called once, when all is over.
    """

    def __init__(
        self,
        context: RequestContext,
        streams: Sequence[AsyncIterator[Event]],
        seconds: float,
        done: Callable[[], None],
    ) -> None:
        self._context, self._streams, self._done = context, streams, done
        self._seconds = seconds
        self.deadline = asyncio.get_running_loop().time() + seconds
        self._told: asyncio.Queue[Told | ApiError | Exception] = asyncio.Queue()
        self._held: Told | None = None
        self._open = len(streams)
        self._closed = False
        self._readers = [
            asyncio.create_task(self._read(index, stream)) for index, stream in enumerate(streams)
        ]

    async def next(self, seconds: float | None = None) -> Told | None:
        """The next event of any sequence; None when all have ended, at once.

        Args:
            seconds: Longest time to wait.

        Raises:
            TimeoutError: nothing happened for so long.
            ApiError: the engine failed, the work was cancelled, or took too long.
        """
        if self._held is not None:
            told, self._held = self._held, None
            return told
        if not self._open:
            return None
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left if seconds is None else min(left, seconds)):
                told_or_error = await self._told.get()
        except TimeoutError:
            if seconds is not None and seconds < left:
                raise
            raise ApiError(
                504,
                f"the answer took longer than {self._seconds:g} seconds; ask for fewer tokens, "
                "or try again when the server is less busy",
                "timeout",
            ) from None
        if isinstance(told_or_error, Exception):
            raise told_or_error
        self._context.count(*told_or_error)
        if isinstance(told_or_error[1], Ended):
            self._open -= 1
            if told_or_error[1].finish == "cancelled":
                raise ApiError(
                    503,
                    "the answer was broken off because the server is stopping; try again",
                    "stopping",
                    retry_after=1,
                )
        return told_or_error

    async def wait_for_first(self, seconds: float) -> None:
        """Wait until something happens, at most so long; `next` gives it once more.

        Raises:
            ApiError: as of `next`; what fails at once can still be answered with a status.
        """
        try:
            self._held = await self.next(seconds)
        except TimeoutError:
            return

    async def close(self) -> None:
        """Cancel whatever has not ended, and free its places. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            for reader in self._readers:
                reader.cancel()
            await asyncio.gather(*self._readers, return_exceptions=True)
            await close_streams(self._streams)
        finally:
            self._done()

    async def _read(self, index: int, stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                self._told.put_nowait((index, event))
                if isinstance(event, Ended):
                    return
            raise EngineError("the engine broke off without an end; try again", "gone")
        except EngineError as error:
            self._told.put_nowait(of_engine(error))
        except Exception as error:
            # A mistake of ours: whoever waits must hear of it, not wait for ever.
            self._told.put_nowait(error)


async def close_streams(streams: Sequence[AsyncIterator[Event]]) -> None:
    """Close iterators that may not have been read to their end."""
    for stream in streams:
        close = getattr(stream, "aclose", None)
        if close is not None and inspect.isawaitable(closing := close()):
            await closing
