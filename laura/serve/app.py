"""The application: the routes of OpenAI's API, of operations and of the page."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from laura import __version__
from laura.serve import page_files
from laura.serve.admin import AdminDesk, admin_routes
from laura.serve.answers import Chunk, Form
from laura.serve.audit import Audit
from laura.serve.engines import ServingEngine
from laura.serve.faults import HttpFault, of_validation
from laura.serve.gate import Gate
from laura.serve.metrics import Metrics
from laura.serve.replies import ChatReply, CompletionReply, ErrorReply, ModelReply, ModelsReply
from laura.serve.service import Service
from laura.serve.settings import ServeSettings
from laura.serve.streams import EventStream, chunks_of, while_there
from laura.serve.tenants import Tenants
from laura.serve.visits import RequestLog, visit_of
from laura.serve.wire import ChatRequest, CompletionRequest
from laura.serve.work import Work

if TYPE_CHECKING:
    from laura.serve.library import Library

PARSE_FAULT = "the body is no JSON in UTF-8, or is nested too deeply"


def create_app(
    settings: ServeSettings,
    engine: ServingEngine,
    library: Library,
    *,
    tenants: Tenants | None = None,
    tenants_file: Path | None = None,
    audit: Audit | None = None,
    log: TextIO | None = None,
) -> FastAPI:
    """The application; `app.state.service` is what it stands on.

    The engine is neither started nor stopped here.

    Args:
        settings: Of the door.
        engine: Answers asks.
        library: The adapters there are.
        tenants: Who may come; None opens it to this machine alone, without keys.
        tenants_file: Where they are read anew from.
        audit: Where admin actions are written down; nowhere by default.
        log: Where requests are, a line of JSON each; standard error by default.
    """
    request_log = RequestLog(sys.stderr if log is None else log)
    service = Service(settings, engine, library, tenants, audit or Audit(None), request_log)
    metrics = Metrics(engine.state)
    app = FastAPI(
        title="Laura",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": ErrorReply} for status in ERRORS},
    )
    app.state.service = service
    app.add_middleware(Gate, service=service, metrics=metrics)
    app.add_exception_handler(HttpFault, _fault)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    _add_models(app, service)
    _add_answers(app, service)
    _add_operations(app, service, metrics)
    app.include_router(admin_routes(AdminDesk(service, tenants_file)))
    _add_page(app)
    app.openapi = partial(_schema, app)  # type: ignore[method-assign]
    return app


ERRORS = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema, without the framework's own 422, which is never given here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=ModelsReply, tags=["models"])
    async def models(request: Request) -> ModelsReply:
        """The base and the adapters that you may use."""
        tenant = visit_of(request).need_tenant()
        return ModelsReply(object="list", data=await service.models(tenant))

    @app.get("/v1/models/{name:path}", response_model=ModelReply, tags=["models"])
    async def model(request: Request, name: str) -> ModelReply:
        """One of them."""
        return await service.model(visit_of(request).need_tenant(), name)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None, responses=_told(ChatReply))
    async def chat(request: Request, wanted: ChatRequest) -> Response:
        """Answer a conversation."""
        return await _answer(service, request, wanted)

    @app.post("/v1/completions", response_model=None, responses=_told(CompletionReply))
    async def complete(request: Request, wanted: CompletionRequest) -> Response:
        """Continue texts."""
        return await _answer(service, request, wanted)


async def _answer(
    service: Service, request: Request, wanted: ChatRequest | CompletionRequest
) -> Response:
    visit = visit_of(request)
    work, form = await while_there(request.receive, service.begin(visit, wanted))
    handed_on = False
    try:
        if not wanted.stream:
            chunks = await while_there(request.receive, _all_chunks(work, form))
            whole = form.whole(chunks, visit).model_dump_json()
            return Response(whole, media_type="application/json")
        heartbeat = service.settings.heartbeat_seconds
        await while_there(request.receive, work.wait_for_first(heartbeat))
        handed_on = True  # the stream closes the work
        return EventStream(
            work,
            form,
            visit,
            wants_usage=wanted.wants_usage,
            heartbeat_seconds=heartbeat,
            failed=service.failed,
        )
    finally:
        if not handed_on:
            await work.close()


async def _all_chunks(work: Work, form: Form) -> list[Chunk]:
    chunks = [chunk async for chunk in chunks_of(work, form) if chunk is not None]
    return form.begin() + chunks


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operations"])
    async def readyz() -> dict[str, str]:
        """Whether it answers."""
        service.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, tags=["operations"])
    async def prometheus(request: Request) -> Response:
        """Numbers for Prometheus; wants an admin key where there are tenants."""
        visit_of(request).need_admin()
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page."""
        return _file(page_files.INDEX, request)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        """What the page needs."""
        return _file(name, request)


def _file(name: str, request: Request) -> Response:
    found = page_files.answer(name, request.headers.get("if-none-match"))
    if found is None:
        raise HTTPException(404)
    return Response(found.body, found.status, found.headers)


async def _fault(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HttpFault)
    visit_of(request).code = fault.code
    return JSONResponse(fault.body(), fault.status, fault.headers())


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _fault(request, of_validation(error.errors()))


async def _refused(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths, wrong methods, bodies that are no JSON."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 400: "invalid_body"}
    words = PARSE_FAULT if error.status_code == 400 else str(error.detail)
    fault = HttpFault(error.status_code, words, codes.get(error.status_code, "refused"))
    response = await _fault(request, fault)
    response.headers.update(error.headers or {})
    return response


def _told(model: type[ChatReply] | type[CompletionReply]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model, "content": {"text/event-stream": {}}}}
