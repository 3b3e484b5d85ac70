"""Every request passes here: its name, its sender, its size, its line in the log.

This is the outermost layer, so that nothing is read from a stranger and nothing is
answered without being counted.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laura.serve.bodies import Body
from laura.serve.faults import HttpFault
from laura.serve.metrics import Metrics
from laura.serve.service import Service
from laura.serve.settings import is_loopback
from laura.serve.streams import ClientGone
from laura.serve.visits import GONE, Visit


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self._app, self._service, self._metrics = app, service, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it; log it either way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(scope["method"], scope["path"])
        scope.setdefault("state", {})["visit"] = visit
        named_send = _named(visit, send)
        try:
            await self._pass(visit, scope, receive, named_send)
        except ClientGone:
            visit.code, visit.status = "client_gone", visit.status or GONE
        except Exception as error:
            fault = self._service.failed(visit, error)
            visit.code = fault.code
            if visit.status:
                raise  # half an answer is out: the server must break the connection off
            await _answer(fault, scope, receive, named_send)
        finally:
            self._service.log.write(visit)
            self._metrics.count(visit)

    async def _pass(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        body = Body(headers, receive)
        try:
            settings = self._service.settings
            if self._service.tenants is None:
                check_origin(headers, settings.host)
            self._service.identify(visit, key_of(headers))
            if scope["path"].startswith("/v1/"):
                visit.need_tenant()
            known = visit.tenant is not None or visit.admin
            read = await body.read(settings.body_bytes if known else 0, settings.body_seconds)
        except HttpFault as fault:
            visit.code = fault.code
            await body.drain()
            await _answer(fault, scope, receive, send, {"connection": "close"})
            return
        await self._app(scope, read, send)


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
        HttpFault: the request names another host, or comes from another site's page.
    """
    asked = headers.get("host", "")
    name = _host_name(f"//{asked}")
    if name is None or not (is_loopback(name) or name == host.lower()):
        raise HttpFault(
            403,
            f"this server answers to localhost only, and the request is for {asked[:100]!r}",
            "host_not_allowed",
        )
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{asked.lower()}":
        raise HttpFault(
            403,
            f"requests from pages of other sites are refused; this one is of {origin[:100]!r}",
            "origin_not_allowed",
        )


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _named(visit: Visit, send: Send) -> Send:
    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            visit.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = visit.id
        await send(message)

    return named


async def _answer(
    fault: HttpFault,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: dict[str, str] | None = None,
) -> None:
    response = JSONResponse(fault.body(), fault.status, {**fault.headers(), **(headers or {})})
    await response(scope, receive, send)
