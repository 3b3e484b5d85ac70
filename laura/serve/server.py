"""The server as a process: what it opens, its socket, its signals, its orderly end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from laura.models.adapter_files import base_facts
from laura.models.load import check_model_folder, resolve_model
from laura.results.errors import UsageError
from laura.results.progress import Progress
from laura.serve.connections import HttpServer, most_connections
from laura.serve.engines import ServingEngine
from laura.serve.library import Library, Policy
from laura.serve.service import Service
from laura.serve.settings import EngineSettings, ServeSettings, model_name

# After the engine has ended every answer, what is written still has to reach its clients.
FLUSH_SECONDS = 5.0


def open_base(base: str, progress: Progress) -> Path:
    """The base's folder, fetched or converted if need be.

    Raises:
        ModelError: nothing of this name, or an unusable folder.
        HubError: it must be downloaded and cannot be.
    """
    folder = resolve_model(base, progress=progress)
    check_model_folder(folder)
    return folder


def open_library(
    folder: Path, adapters: Path | None, settings: EngineSettings, policy: Policy, fingerprint: str
) -> Library:
    """The adapters of a folder that fit a base.

    Args:
        folder: The base's.
        adapters: Theirs; None for a server of the base alone.
        settings: Of the engine.
        policy: What their records must say.
        fingerprint: Hash of the base's weights.

    Raises:
        StoreError: the folder cannot be read.
    """
    base = base_facts(folder, model_name(settings.base), fingerprint)
    return Library(adapters, base, max_rank=settings.max_rank, policy=policy)


def open_engine(folder: Path, settings: EngineSettings) -> ServingEngine:
    """The engine, not started yet.

    Raises:
        UsageError: a device or an address that there is not, or arguments that do not fit the
            base.
    """
    if settings.kind == "vllm":
        from laura.serve.vllm import VllmServed

        return VllmServed(folder, settings)
    if settings.kind == "pool":
        from laura.serve.pool import EnginePool

        return EnginePool(folder, settings)
    from laura.serve.async_engine import open_inprocess

    return open_inprocess(folder, settings)


def run(
    app: FastAPI, place: socket.socket, engine: ServingEngine, on_ready: Callable[[], None]
) -> None:
    """Serve until a signal to stop comes; then finish what runs, within the time of grace.

    The socket listens at once: until the engine has started, `/readyz` says 503.

    Args:
        app: Of `create_app`.
        place: Of `listening_socket`; closed at the end.
        engine: The application's engine; started and stopped here.
        on_ready: Called once, when requests are answered.

    Raises:
        KeyboardInterrupt: it was stopped by Ctrl-C. SIGTERM ends it without an error.
        LauraError: the engine cannot start.
    """
    with place:
        if asyncio.run(_serve(app, place, engine, on_ready)) == signal.SIGINT:
            raise KeyboardInterrupt


def listening_socket(settings: ServeSettings) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        UsageError: the address is taken, or is none of this machine's.
    """
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen at {host} port {port} ({error}); choose others with --host and "
            "--port (--port 0 takes a free one)"
        ) from error


def url_of(place: socket.socket) -> str:
    """Where a socket can be reached."""
    host, port = place.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(
    app: FastAPI, place: socket.socket, engine: ServingEngine, on_ready: Callable[[], None]
) -> signal.Signals | None:
    """Serve; the signal that ended it."""
    service: Service = app.state.service
    settings = service.settings
    server = HttpServer(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # The connections' own patience ends idle ones, later than clients give them up: else
            # a request could meet a connection that is just being closed.
            timeout_keep_alive=3600,
            timeout_graceful_shutdown=int(settings.grace_seconds + FLUSH_SECONDS),
        ),
        most_connections(settings.connections),
    )
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.put_nowait, number)
    serving = asyncio.create_task(server.serve(sockets=[place]))
    service.warm()
    starting = asyncio.create_task(engine.start())
    waiting = asyncio.create_task(told.get())
    try:
        await asyncio.wait({starting, waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            # What is there now stays: 400,000 objects of libraries. Looked through for garbage
            # they would stop every request for 200 ms, again and again.
            gc.collect()
            gc.freeze()
            on_ready()
        await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        service.stopping = True
        server.should_exit = True
        hurry = asyncio.create_task(_hurry(told, server, engine))
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.stop(settings.grace_seconds)
        await asyncio.wait({serving}, timeout=FLUSH_SECONDS)
        server.end_all()  # who has not read an answer by now will not
        await serving
        for task in (hurry, waiting):
            task.cancel()
        await asyncio.gather(hurry, waiting, return_exceptions=True)
        service.close()


async def _hurry(
    told: asyncio.Queue[signal.Signals], server: uvicorn.Server, engine: ServingEngine
) -> None:
    """A second signal: whoever sent it does not want to wait."""
    await told.get()
    server.force_exit = True
    await engine.stop(0)
