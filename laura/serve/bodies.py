"""Bodies of requests: read whole within limits of size and time, before anybody looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from laura.serve.faults import HttpFault
from laura.serve.streams import ClientGone

# A client that is told early that its body is too large may still be sending: without
# reading on it would see a broken connection instead of the answer.
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 32 << 20


class Body:
    """The body of one request.

    Args:
        headers: Of the request.
        receive: Gives its parts.
    """

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._headers, self._receive = headers, receive
        self._ended = False

    async def read(self, most_bytes: int, seconds: float) -> Receive:
        """Read it whole; what is returned gives it once more, in one part.

        Its length is counted as it comes: chunked bodies tell none, and others may lie.

        Raises:
            HttpFault: it is too large, or does not come within the time.
            ClientGone: it never comes whole.
        """
        told = self._headers.get("content-length", "")
        if told.isdecimal() and (len(told) > 18 or int(told) > most_bytes):
            raise _too_large(most_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for part in self._parts():
                    body += part
                    if len(body) > most_bytes:
                        raise _too_large(most_bytes)
        except TimeoutError:
            raise HttpFault(
                408, f"the body did not come whole within {seconds:g} seconds", "body_too_slow"
            ) from None
        return self._replayed(bytes(body))

    async def drain(self) -> None:
        """Read on for a moment what is not wanted.

        Raises:
            ClientGone: nobody waits for an answer.
        """
        if self._headers.get("expect", "").lower() == "100-continue":
            return  # it has not begun to send
        read = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                async for part in self._parts():
                    read += len(part)
                    if read > DRAIN_BYTES:
                        return
        except TimeoutError:
            return

    async def _parts(self) -> AsyncIterator[bytes]:
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._ended = not message.get("more_body", False)
            yield message.get("body", b"")

    def _replayed(self, body: bytes) -> Receive:
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await self._receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


def _too_large(most_bytes: int) -> HttpFault:
    return HttpFault(
        413, f"the body is larger than {most_bytes} bytes; send a smaller one", "body_too_large"
    )
