"""The application: every request passes here, and finds its route.

The outermost layer gives a request its name, asks who sent it and how large it is, and logs and
counts it, so that nothing is read from a stranger and nothing is answered without being counted.
Behind it are the routes of OpenAI's API, of operations and of the page.

The page runs its own modules and nothing else, talks to its own server alone, and may not be
framed. Names come from clients: only those of the files that are there have an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laura import __version__
from laura.serve.admin import Admin, admin_routes
from laura.serve.answers import EventStream, Generation, while_there
from laura.serve.audit import Audit
from laura.serve.auth import is_loopback
from laura.serve.context import ClientGone, Metrics, RequestContext, RequestLog, context_of
from laura.serve.database import Database
from laura.serve.engines import ServingEngine
from laura.serve.prompts import Body
from laura.serve.responses import (
    ResponseObject,
    ResponsesRequest,
    ResponseStream,
    ResponseWriter,
    renamed,
    whole_response,
)
from laura.serve.schemas import (
    ApiError,
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    ErrorResponse,
    GenerationRequest,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    bad_request,
)
from laura.serve.service import Service
from laura.serve.settings import ServeSettings
from laura.serve.traces import traced_request

if TYPE_CHECKING:
    from laura.serve.library import Library

ERRORS = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
CODES = {404: "not_found", 405: "method_not_allowed"}
PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept by the browser, but asked about each time: a new version is seen at once.
    "cache-control": "no-cache",
}
SCHEMAS = "#/components/schemas/"
TOKENIZE, LIVENESS = "/tokenize", "/healthz"
BODIES = (ChatCompletionRequest, CompletionRequest, ResponsesRequest, TokenizeRequest)
GONE = 499  # nginx's number for a client that did not wait
# A client that is told early that its body is too large may still be sending: without
# reading on it would see a broken connection instead of the answer.
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 32 << 20


def create_app(
    settings: ServeSettings,
    engine: ServingEngine,
    library: Library,
    *,
    database: Database | None = None,
    log: RequestLog | None = None,
) -> FastAPI:
    """The application; `app.state.service` is what it stands on.

    The engine is neither started nor stopped here.

    Args:
        settings: Of the HTTP server.
        engine: Answers.
        library: The adapters there are.
        database: Who may come, what they used, and what admins did; None opens it to this machine
            alone, without keys.
        log: Where requests are, a line of JSON each; standard error by default.
    """
    log = log or RequestLog(sys.stderr)
    service = Service(settings, engine, library, database, log)
    metrics = Metrics(engine.state, log.dropped)
    app = FastAPI(
        title="Laura",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        # A redirect would send a key and a prompt wherever the request's host header says.
        redirect_slashes=False,
        responses={status: {"model": ErrorResponse} for status in ERRORS},
    )
    app.state.service = service
    app.add_middleware(RequestMiddleware, service=service, metrics=metrics)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _refused)
    app.include_router(_openai_routes(service))
    app.include_router(_tokens_routes(service))
    app.include_router(_operations_routes(service, metrics))
    app.include_router(admin_routes(Admin(service, Audit(service.database))))
    app.include_router(_page_routes())
    app.openapi = partial(_schema, app)  # type: ignore[method-assign]
    return app


def _openai_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.get("/models", tags=["models"])
    async def models(request: Request) -> ModelList:
        """The base and the adapters that you may use."""
        tenant = context_of(request).need_tenant()
        return ModelList(object="list", data=await service.models(tenant))

    @routes.get("/models/{name:path}", tags=["models"])
    async def model(request: Request, name: str) -> ModelCard:
        """One of them."""
        return await service.model(context_of(request).need_tenant(), name)

    def add(
        path: str,
        asked: type[GenerationRequest],
        answer: type[ChatCompletion] | type[Completion],
        words: str,
    ) -> None:
        async def ask(request: Request) -> Response:
            return await _answer(service, request, asked)

        routes.add_api_route(
            path, ask, methods=["POST"], name=path, description=words, response_model=None,
            responses={200: {"model": answer, "content": {"text/event-stream": {}}}},
            openapi_extra=_asked(asked),
        )  # fmt: skip

    add("/chat/completions", ChatCompletionRequest, ChatCompletion, "Answer a conversation.")
    add("/completions", CompletionRequest, Completion, "Continue texts.")

    @routes.post(
        "/responses", response_model=None, openapi_extra=_asked(ResponsesRequest),
        responses={200: {"model": ResponseObject, "content": {"text/event-stream": {}}}},
    )  # fmt: skip
    async def responses(request: Request) -> Response:
        """Answer a conversation, as OpenAI's newer API has it; nothing is kept."""
        return await _respond(service, request)

    return routes


def _asked(body: type[BaseModel]) -> dict[str, Any]:
    """Bodies are read by `Service.read`, so the framework must be told what they are."""
    content = {"application/json": {"schema": {"$ref": f"{SCHEMAS}{body.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


async def _read(service: Service, request: Request, kind: type[Body]) -> Body:
    told = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/([\w.-]+\+)?json", told):
        raise bad_request("the body must be JSON, with the header content-type: application/json")
    return await service.read(context_of(request), kind, await request.body())


async def _answer(service: Service, request: Request, kind: type[GenerationRequest]) -> Response:
    wanted = await while_there(request.receive, _read(service, request, kind))

    async def whole(generation: Generation) -> str:
        return (await generation.whole()).model_dump_json()

    stream = partial(
        EventStream, wants_usage=wanted.wants_usage, wants_usage_so_far=wanted.wants_usage_so_far
    )
    return await _deliver(service, request, wanted, whole, stream)


async def _respond(service: Service, request: Request) -> Response:
    wanted = await while_there(request.receive, _read(service, request, ResponsesRequest))
    writer = ResponseWriter(wanted, context_of(request).id)
    whole, stream = partial(whole_response, writer), partial(ResponseStream, writer)
    try:
        return await _deliver(service, request, wanted.chat(), whole, stream)
    except ApiError as fault:
        raise renamed(fault) from None


async def _deliver(
    service: Service,
    request: Request,
    wanted: GenerationRequest,
    whole: Callable[[Generation], Coroutine[Any, Any, str]],
    stream: Callable[..., EventStream],
) -> Response:
    context, there = context_of(request), partial(while_there, request.receive)
    generation = await there(service.begin(context, request.state.admission, wanted))
    handed_on = False
    try:
        if not wanted.stream:
            return Response(await there(whole(generation)), media_type="application/json")
        heartbeat = service.settings.heartbeat_seconds
        await there(generation.wait_for_first(heartbeat))
        handed_on = True  # the stream closes it
        return stream(generation, heartbeat_seconds=heartbeat, failed=service.failed)
    finally:
        if not handed_on:
            generation.close()


def _tokens_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["tokens"])

    @routes.post(TOKENIZE, openapi_extra=_asked(TokenizeRequest))
    async def tokenize(request: Request) -> TokenizeResponse:
        """The tokens of a text or of a conversation, as vLLM tells them."""
        there = partial(while_there, request.receive)
        wanted = await there(_read(service, request, TokenizeRequest))
        context, admission = context_of(request), request.state.admission
        return await there(service.tokenize(context, admission, wanted))

    return routes


def _operations_routes(service: Service, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get(LIVENESS)
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @routes.get("/health", response_class=Response)
    async def health() -> Response:
        """Whether it answers, as vLLM says it: without a word."""
        service.check_ready()
        return Response()

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """Of Laura."""
        return {"version": __version__}

    @routes.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether it answers, and what of it does not."""
        service.check_ready()
        why = service.engine.state().why_not
        return {"status": "ready", **({"detail": why} if why else {})}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def prometheus(request: Request) -> Response:
        """Numbers for Prometheus; wants an admin key where there are tenants."""
        context_of(request).need_admin()
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def _page_routes() -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page(request: Request) -> Response:
        """The page."""
        return await static(request, INDEX)

    @routes.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        """What the page needs."""
        response = page_response(name, request.headers.get("if-none-match"))
        if response is None:
            raise HTTPException(404)
        return response

    return routes


def page_response(name: str = INDEX, if_none_match: str | None = None) -> Response | None:
    """The answer to a GET of one of the page's files.

    Args:
        name: `index.html` for `/`, else what follows `/static/`.
        if_none_match: The request's header of that name.

    Returns:
        200 with the file, 304 without a body where the client has it already, None where
        there is no such file.
    """
    if name not in _files():
        return None
    kind, tag, body = _files()[name]
    headers = {**PAGE_HEADERS, "etag": tag}
    known = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    if known & {tag, "*"}:
        return Response(b"", 304, headers)
    return Response(body, 200, {**headers, "content-type": kind})


@cache
def _files() -> dict[str, tuple[str, str, bytes]]:
    """Type, entity tag and content by name; read once while the server lives."""
    found = {}
    for path in PAGE.iterdir():
        if path.suffix in TYPES:
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[path.name] = (TYPES[path.suffix], tag, body)
    return found


async def _api_error(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, ApiError)
    context_of(request).refuse(fault)
    return JSONResponse(fault.body(), fault.status, fault.headers())


async def _refused(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths, wrong methods."""
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "refused")
    response = await _api_error(request, ApiError(error.status_code, str(error.detail), code))
    response.headers.update(error.headers or {})
    return response


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema, without the framework's own 422, which is never given here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        _, bodies = models_json_schema(
            [(body, "validation") for body in BODIES],
            ref_template=SCHEMAS + "{model}",
        )
        known = schema["components"]["schemas"]
        known.update(bodies["$defs"])
        for name in ("HTTPValidationError", "ValidationError"):
            known.pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


class RequestMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self._app, self._service, self._metrics = app, service, metrics
        self._answer: ASGIApp = self._pass
        if origins := service.settings.cors_origins:
            # Never with credentials: a key is sent by the page itself, not by its browser.
            self._answer = CORSMiddleware(
                self._pass,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it; log it either way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(scope["method"], scope["path"])
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server itself leaves the body out
        scope.setdefault("state", {})["context"] = context

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = context.id
            await send(message)

        try:
            await self._answer(scope, receive, send_named)
        except ClientGone:
            context.code, context.status = "client_gone", context.status or GONE
        except Exception as error:
            fault = self._service.failed(context, error)
            if context.status:
                raise  # half an answer is out: the server must break the connection off
            await _send_error(fault, scope, receive, send_named)
        finally:
            self._service.log.write(context.log_line())
            self._metrics.count(context)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["state"]["context"]
        headers, service = Headers(scope=scope), self._service
        settings, body = service.settings, RequestBody(headers, receive)
        admission = None
        try:
            try:
                if service.tenants is None:
                    check_origin(headers, settings.host, settings.cors_origins)
                if scope["path"] != LIVENESS:  # which must not depend on a database
                    await service.identify(context, key_of(headers))
                if scope["path"].startswith("/v1/") or scope["path"] == TOKENIZE:
                    tenant = context.need_tenant()
                    if scope["method"] == "POST":
                        admission = await service.limits.admit(tenant.name)
                known = context.tenant is not None or context.admin
                read = await body.read(settings.body_bytes if known else 0, settings.body_seconds)
            except ApiError as fault:
                context.refuse(fault)
                await body.drain()
                await _send_error(fault, scope, receive, send, {"connection": "close"})
                return
            scope["state"]["admission"] = admission
            with traced_request(context, headers) if admission else nullcontext():
                await self._app(scope, read, send)
        finally:
            if admission is not None:
                service.settle(context, admission)


async def _send_error(
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


def check_origin(headers: Headers, host: str, others: Collection[str] = ()) -> None:
    """Without keys, only programs on this machine, our own page and those of `others` may ask.

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
    if origin is not None and origin.lower() not in (f"http://{asked.lower()}", *others):
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
