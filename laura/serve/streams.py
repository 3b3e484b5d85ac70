"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from laura.serve.answers import Chunk, Form
from laura.serve.faults import HttpFault
from laura.serve.visits import Visit
from laura.serve.work import Work

T = TypeVar("T")

HEARTBEAT = b": still working\n\n"
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a client, and drop it when the client goes away.

    Args:
        receive: Of a request whose body has been read.
        work: Cancelled when the client is gone.

    Raises:
        ClientGone: it is.
    """
    doing = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_until_gone(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Chunks as server-sent events, while the client listens.

    Args:
        work: What is told; closed at the end, whatever happens.
        form: How it is written.
        visit: Whose it is.
        wants_usage: Whether the last chunk tells what was used.
        heartbeat_seconds: A comment is sent when nothing happened for so long: it keeps
            proxies from hanging up, and finds out that a client is gone.
        failed: Told of a mistake of ours.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Work,
        form: Form,
        visit: Visit,
        *,
        wants_usage: bool,
        heartbeat_seconds: float,
        failed: Callable[[Visit, Exception], HttpFault],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._work, self._form, self._visit = work, form, visit
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
            for first in self._form.begin():
                yield _data(first)
            async for chunk in chunks_of(self._work, self._form, self._heartbeat):
                yield HEARTBEAT if chunk is None else _data(chunk)
            if self._wants_usage:
                yield _data(self._form.usage(self._visit))
            yield DONE
        except Exception as error:
            # The status has long been sent; clients read the error from the stream.
            fault = error if isinstance(error, HttpFault) else self._failed(self._visit, error)
            self._visit.code = fault.code
            yield b"data: " + json.dumps(fault.body()).encode() + b"\n\n"


async def chunks_of(
    work: Work, form: Form, heartbeat_seconds: float | None = None
) -> AsyncGenerator[Chunk | None]:
    """The chunks of all events, and None whenever nothing has happened for so long."""
    while True:
        try:
            told = await work.next(heartbeat_seconds)
        except TimeoutError:
            yield None
            continue
        if told is None:
            return
        if (chunk := form.chunk(*told)) is not None:
            yield chunk


def _data(chunk: Chunk) -> bytes:
    return b"data: " + chunk.model_dump_json().encode() + b"\n\n"
