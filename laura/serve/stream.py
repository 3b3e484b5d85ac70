"""An answer on its way: the events of a request's sequences, as server-sent events or whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from laura.serve.answers import Chunk, Serializer
from laura.serve.context import ApiError, ClientGone, RequestContext, of_engine
from laura.serve.engines import (
    AdapterFiles,
    Ended,
    EngineError,
    Event,
    SequenceRequest,
    ServingEngine,
)
from laura.serve.schemas import ChatCompletion, Completion

T = TypeVar("T")
Told = tuple[int, Event]
"""Which sequence, counted from 0, and what happened to it."""

HEARTBEAT = b": still working\n\n"


class Generation:
    """The sequences of one request while an engine works on them, merged into one series.

    Args:
        context: Whose it is; told of every event.
        serializer: How they are written.
        seconds: All must be answered within this time.
    """

    def __init__(self, context: RequestContext, serializer: Serializer, seconds: float) -> None:
        self.context, self.serializer, self._seconds = context, serializer, seconds
        self.deadline = asyncio.get_running_loop().time() + seconds
        self._told: asyncio.Queue[tuple[int, Event | EngineError]] = asyncio.Queue()
        self._held: Told | None = None
        self._cancels: list[Callable[[], None]] = []
        self._open = 0

    def begin(
        self,
        engine: ServingEngine,
        requests: Iterable[SequenceRequest],
        adapter: AdapterFiles | None,
    ) -> None:
        """Put sequences into an engine's queue.

        Raises:
            ApiError: it does not take one of them; then this is to be closed.
        """
        before: tuple[int, ...] = ()
        try:
            for request in requests:
                # Further answers to a prompt do not read it again.
                reads = 0 if request.prompt is before else len(request.prompt)
                before = request.prompt
                tell = partial(self._tell, self._open, reads)
                self._cancels.append(engine.submit(request, adapter, tell))
                self._open += 1
        except EngineError as error:
            raise of_engine(error) from error

    async def next(self, seconds: float | None = None) -> Told | None:
        """The next event of any sequence; None when all have ended, at once.

        Args:
            seconds: Longest time to wait.

        Raises:
            TimeoutError: nothing happened for so long.
            ApiError: the engine failed, the answer was cancelled, or took too long.
        """
        if self._held is not None:
            told, self._held = self._held, None
            return told
        if not self._open:
            return None
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left if seconds is None else min(left, seconds)):
                index, event = await self._told.get()
        except TimeoutError:
            if seconds is not None and seconds < left:
                raise
            raise ApiError(
                504,
                f"the answer took longer than {self._seconds:g} seconds; ask for fewer tokens, "
                "or try again when the server is less busy",
                "timeout",
            ) from None
        if isinstance(event, EngineError):
            raise of_engine(event) from event
        if isinstance(event, Ended):
            self._open -= 1
            if event.finish == "cancelled":
                raise ApiError(
                    503,
                    "the answer was broken off because the server is stopping; try again",
                    "stopping",
                    retry_after=1,
                )
        return index, event

    async def wait_for_first(self, seconds: float) -> None:
        """Wait until something happens, at most so long; `next` gives it once more.

        Raises:
            ApiError: as of `next`; what fails at once can still be answered with a status.
        """
        try:
            self._held = await self.next(seconds)
        except TimeoutError:
            return

    async def chunks(self, heartbeat_seconds: float | None = None) -> AsyncGenerator[Chunk | None]:
        """The chunks of the answer, and None whenever nothing has happened for so long.

        Raises:
            ApiError: as of `next`.
        """
        for first in self.serializer.begin():
            yield first
        while True:
            try:
                told = await self.next(heartbeat_seconds)
            except TimeoutError:
                yield None
                continue
            if told is None:
                return
            if (chunk := self.serializer.chunk(*told)) is not None:
                yield chunk

    async def whole(self) -> ChatCompletion | Completion:
        """The answer when all of it is there.

        Raises:
            ApiError: as of `next`.
        """
        chunks = [one async for one in self.chunks() if one is not None]
        return self.serializer.whole(chunks, self.context)

    def close(self) -> None:
        """Cancel whatever has not ended, and free its places. May be called twice."""
        for cancel in self._cancels:
            cancel()

    def _tell(self, index: int, reads: int, event: Event | EngineError) -> None:
        # What was computed counts, also where nobody has waited for it.
        if not isinstance(event, EngineError):
            self.context.count(index, reads, event)
        self._told.put_nowait((index, event))


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a client, and drop it when the client goes away.

    Args:
        receive: Of a request whose body has been read.
        work: Cancelled when the client is gone.

    Raises:
        ClientGone: it is.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


class EventStream(Response):
    """Chunks as server-sent events, while the client listens.

    Args:
        generation: What is told; closed at the end, whatever happens.
        wants_usage: Whether the last chunk says what was used.
        heartbeat_seconds: A comment is sent when nothing happened for so long: it keeps
            proxies from hanging up, and finds out that a client is gone.
        failed: Told of a mistake of ours.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        *,
        wants_usage: bool,
        heartbeat_seconds: float,
        failed: Callable[[RequestContext, Exception], ApiError],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation, self._wants_usage = generation, wants_usage
        self._heartbeat, self._failed = heartbeat_seconds, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; raises `ClientGone` when nobody listens any more."""
        try:
            await while_there(receive, self._send_all(send))
        finally:
            self._generation.close()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        try:
            # Who does not read what is sent must not hold a place for ever either.
            async with asyncio.timeout_at(self._generation.deadline + self._heartbeat):
                async with aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (TimeoutError, OSError):
            raise ClientGone from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes]:
        generation, context = self._generation, self._generation.context
        try:
            async for chunk in generation.chunks(self._heartbeat):
                yield HEARTBEAT if chunk is None else _data(chunk.model_dump_json())
            if self._wants_usage:
                yield _data(generation.serializer.usage(context).model_dump_json())
            yield _data("[DONE]")
        except Exception as error:
            # The status has long been sent; clients read the error from the stream.
            fault = error if isinstance(error, ApiError) else self._failed(context, error)
            context.code = fault.code
            yield _data(json.dumps(fault.body()))


def _data(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"
