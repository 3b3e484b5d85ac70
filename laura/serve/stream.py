"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from laura.serve.answers import Chunk, Serializer
from laura.serve.context import ClientGone, RequestContext
from laura.serve.errors import ApiError
from laura.serve.work import Work

T = TypeVar("T")

HEARTBEAT = b": still working\n\n"


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
        work: What is told; closed at the end, whatever happens.
        serializer: How it is written.
        context: Whose it is.
        wants_usage: Whether the last chunk says what was used.
        heartbeat_seconds: A comment is sent when nothing happened for so long: it keeps
            proxies from hanging up, and finds out that a client is gone.
        failed: Told of a mistake of ours.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Work,
        serializer: Serializer,
        context: RequestContext,
        *,
        wants_usage: bool,
        heartbeat_seconds: float,
        failed: Callable[[RequestContext, Exception], ApiError],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._work, self._serializer, self._context = work, serializer, context
        self._wants_usage, self._heartbeat = wants_usage, heartbeat_seconds
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; raises `ClientGone` when nobody listens any more."""
        try:
            await while_there(receive, self._send_all(send))
        finally:
            await self._work.close()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        try:
            # Who does not read what is sent must not hold a place for ever either.
            async with asyncio.timeout_at(self._work.deadline + self._heartbeat):
                async with aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (TimeoutError, OSError):
            raise ClientGone from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in all_chunks(self._work, self._serializer, self._heartbeat):
                yield HEARTBEAT if chunk is None else _data(chunk.model_dump_json())
            if self._wants_usage:
                yield _data(self._serializer.usage(self._context).model_dump_json())
            yield _data("[DONE]")
        except Exception as error:
            # The status has long been sent; clients read the error from the stream.
            fault = error if isinstance(error, ApiError) else self._failed(self._context, error)
            self._context.code = fault.code
            yield _data(json.dumps(fault.body()))


async def all_chunks(
    work: Work, serializer: Serializer, heartbeat_seconds: float | None = None
) -> AsyncGenerator[Chunk | None]:
    """The chunks of an answer, and None whenever nothing has happened for so long."""
    for first in serializer.begin():
        yield first
    while True:
        try:
            told = await work.next(heartbeat_seconds)
        except TimeoutError:
            yield None
            continue
        if told is None:
            return
        if (chunk := serializer.chunk(*told)) is not None:
            yield chunk


def _data(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"
