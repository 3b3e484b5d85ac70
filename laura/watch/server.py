"""The page's server: one study, shown and steered from this machine alone.

Whoever asks must know the token that stands in the address, so neither another user of the
machine nor another page of the browser gets anything: a page elsewhere cannot know it. A request
must also be for this machine by name, so that a name of a stranger's that was turned to
127.0.0.1 is refused, and what changes something must come from the page itself. The page may not
be framed, and asks nobody but its own server. A study's report holds its author's scripts; it is
shown apart, where it can press nothing.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, FiniteFloat
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laura import report
from laura.results.errors import LauraError, UsageError
from laura.study import steering
from laura.watch.view import StudyGone, StudyView

HOST, NAMES = "127.0.0.1", ("127.0.0.1", "localhost")
PAGE, SHARED = Path(__file__).parent / "page", Path(report.__file__).parent / "templates"
FILES = {
    "": PAGE / "index.html",
    "watch.js": PAGE / "watch.js",
    "watch.css": PAGE / "watch.css",
    "chart.js": SHARED / "chart.js",
    "chart.css": SHARED / "chart.css",
}
HEADERS = {
    # The drawing sets styles of its own; scripts are files of ours alone.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# Of no origin, so that a script in it cannot reach the page's address.
REPORT_POLICY = "sandbox allow-scripts allow-downloads allow-popups; frame-ancestors 'none'"


class PageRequest(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StopAsked(PageRequest):
    """To stop, or not to."""

    wanted: bool


class SkipAsked(PageRequest):
    """To leave a run out, or not to."""

    arm: str
    learning_rate: FiniteFloat
    seed: int
    wanted: bool


class RateAsked(PageRequest):
    """One more rate of an arm."""

    arm: str
    learning_rate: FiniteFloat


class SeedAsked(PageRequest):
    """One more seed."""

    seed: int


class Guard:
    """Lets in who knows the token and means this machine; see the top of this file."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before anything of it is read."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(scope)
        app = self._app if refused is None else JSONResponse({"error": refused}, 403)
        await app(scope, receive, sent)

    def _refused(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, token = headers.get("host", ""), scope["path"].split("/")[1]
        if host.rsplit(":", 1)[0] not in NAMES:
            return "this page is for its own machine, as 127.0.0.1 or localhost"
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return "give the whole address that `laura watch` told"
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return "only the page itself may change a study"
        return None


def create_watch(folder: Path, token: str) -> FastAPI:
    """The application of one study's page, below /TOKEN/.

    Args:
        folder: Of the study.
        token: What whoever may see and steer it knows.
    """
    view, looking = StudyView(folder), threading.Lock()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard, token=token)
    app.add_exception_handler(LauraError, _told)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _misunderstood)  # type: ignore[arg-type]

    @app.get(f"/{token}/state")
    def state() -> dict[str, Any]:
        with looking:
            return _of_study(folder, view.state)

    @app.get(f"/{token}/report")
    def report_page() -> Response:
        if not (folder / "report.html").is_file():
            raise StudyGone(f"there is no report in {folder}; `laura report {folder}` draws it")
        headers = {"content-security-policy": REPORT_POLICY}
        return FileResponse(folder / "report.html", headers=headers)

    @app.get(f"/{token}/{{name:path}}")
    def file(name: str) -> Response:
        return FileResponse(FILES[name]) if name in FILES else Response(status_code=404)

    @app.post(f"/{token}/stop")
    def stop(asked: StopAsked) -> dict[str, Any]:
        return _of_study(folder, lambda: steering.ask_to_stop(folder, asked.wanted))

    @app.post(f"/{token}/skip")
    def skip(asked: SkipAsked) -> dict[str, Any]:
        return _of_study(folder, lambda: steering.ask_to_skip(folder, **asked.model_dump()))

    @app.post(f"/{token}/rate")
    def rate(asked: RateAsked) -> dict[str, Any]:
        def act() -> None:
            with looking:
                grown = view.grown(asked.arm)
            steering.ask_for_rate(folder, grown=grown, **asked.model_dump())

        return _of_study(folder, act)

    @app.post(f"/{token}/seed")
    def seed(asked: SeedAsked) -> dict[str, Any]:
        return _of_study(folder, lambda: steering.ask_for_seed(folder, asked.seed))

    return app


def _of_study(folder: Path, act: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """What `act` gives, {} for nothing; where the study went away meanwhile, that is told."""
    if not (folder / "recipe.yaml").is_file():
        raise StudyGone(f"there is no study in {folder} any more: it was deleted or moved")
    try:
        return act() or {}
    except (LauraError, OSError) as error:
        if isinstance(error, LauraError) and (folder / "recipe.yaml").is_file():
            raise
        raise StudyGone(f"{folder} is being deleted or moved ({error})") from error


async def _told(request: Request, error: LauraError) -> Response:
    status = 410 if isinstance(error, StudyGone) else 400 if isinstance(error, UsageError) else 500
    return JSONResponse({"error": str(error)}, status)


async def _misunderstood(request: Request, error: RequestValidationError) -> Response:
    words = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    return JSONResponse({"error": words}, 400)


def listening(port: int) -> socket.socket:
    """A socket of this machine alone.

    Args:
        port: 0 for a free one.

    Raises:
        UsageError: the port is taken.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen at {HOST} port {port} ({error}); give another --port, or none for a "
            "free one"
        ) from error


def serve_page(app: FastAPI, place: socket.socket) -> None:
    """Serve until Ctrl-C.

    Raises:
        KeyboardInterrupt: it came.
    """
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[place])
