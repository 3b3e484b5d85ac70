"""Every request passes here: its name, its sender, its size, its line in the log.

This is the outermost layer, so that nothing is read from a stranger and nothing is
answered without being counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laura.serve.auth import is_loopback
from laura.serve.context import ClientGone, Metrics, RequestContext
from laura.serve.schemas import ApiError
from laura.serve.service import Service

GONE = 499  # nginx's number for a client that did not wait
# A client that is told early that its body is too large may still be sending: without
# reading on it would see a broken connection instead of the answer.
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 32 << 20


class RequestMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self._app, self._service, self._metrics = app, service, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it; log it either way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(scope["method"], scope["path"])
        scope.setdefault("state", {})["context"] = context

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = context.id
            await send(message)

        try:
            await self._pass(context, scope, receive, send_named)
        except ClientGone:
            context.code, context.status = "client_gone", context.status or GONE
        except Exception as error:
            fault = self._service.failed(context, error)
            if context.status:
                raise  # half an answer is out: the server must break the connection off
            await _refuse(fault, scope, receive, send_named)
        finally:
            self._service.log.write(context.log_line())
            self._metrics.count(context)

    async def _pass(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers, service = Headers(scope=scope), self._service
        settings, body = service.settings, RequestBody(headers, receive)
        admission = None
        try:
            try:
                if service.tenants is None:
                    check_origin(headers, settings.host)
                service.identify(context, key_of(headers))
                if scope["path"].startswith("/v1/"):
                    tenant = context.need_tenant()
                    if scope["method"] == "POST":
                        admission = service.limits.admit(tenant)
                known = context.tenant is not None or context.admin
                read = await body.read(settings.body_bytes if known else 0, settings.body_seconds)
            except ApiError as fault:
                context.code = fault.code
                await body.drain()
                await _refuse(fault, scope, receive, send, {"connection": "close"})
                return
            scope["state"]["admission"] = admission
            await self._app(scope, read, send)
        finally:
            if admission is not None:
                service.settle(context, admission)


async def _refuse(
    fault: ApiError,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: dict[str, str] | None = None,
) -> None:
    response = JSONResponse(fault.body(), fault.status, {**fault.headers(), **(headers or {})})
    await response(scope, receive, send)


def key_of(headers: Headers) -> str | None:
    """The key a request brings along, if it does."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else None


def check_origin(headers: Headers, host: str) -> None:
    """Without keys, only programs on this machine and our own page may ask.

    A page of another site can make its visitor's browser send requests to this machine:
    under a name of its own that it points here (DNS rebinding), or straight to the
    address, telling its origin.

    Raises:
        ApiError: the request names another host, or comes from another site's page.
    """
    asked, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{asked}").hostname
    except ValueError:
        name = None
    if name is None or not (is_loopback(name) or name == host.lower()):
        raise ApiError(
            403,
            f"this server answers to localhost only, and the request is for {asked[:100]!r}",
            "host_not_allowed",
        )
    if origin is not None and origin.lower() != f"http://{asked.lower()}":
        raise ApiError(
            403,
            f"requests from pages of other sites are refused; this one is of {origin[:100]!r}",
            "origin_not_allowed",
        )


class RequestBody:
    """The body of one request, read whole within limits of size and time.

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
            ApiError: it is too large, or does not come within the time.
            ClientGone: it never comes whole.
        """
        too_large = ApiError(
            413, f"the body is larger than {most_bytes} bytes; send a smaller one", "body_too_large"
        )
        told = self._headers.get("content-length", "")
        if told.isdecimal() and (len(told) > 18 or int(told) > most_bytes):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for part in self._parts():
                    body += part
                    if len(body) > most_bytes:
                        raise too_large
        except TimeoutError:
            raise ApiError(
                408, f"the body did not come whole within {seconds:g} seconds", "body_too_slow"
            ) from None
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await self._receive()

        return replay

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
