"""A whole server for tests: fake engine, adapters by name, tenants with plain keys."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from laura.models.adapter_files import BaseFacts
from laura.serve.app import create_app
from laura.serve.auth import Tenant, TenantsFile, hash_of_key
from laura.serve.context import RequestLog
from laura.serve.database import Database
from laura.serve.engines import AdapterFiles
from laura.serve.library import AdapterRefusedError, Entry, UnknownAdapterError
from laura.serve.limits import Usage
from laura.serve.settings import ServeSettings
from laura.serve.tenant_changes import replace
from tests.serve.fake_engine import FakeEngine
from tests.serve.pools import Behind

BASE = "micro"
ADMIN = "sk-laura-admin"
# Pools between houses and their engines; None for none (the fixture `engines`).
BEHIND: list[Behind] | None = None


class FakeLibrary:
    """Adapters that are names; one of them is refused."""

    def __init__(self, *names: str, refused: str | None = None) -> None:
        self.entries = {name: Entry(name, rank=8, bytes=10) for name in names}
        if refused:
            self.entries[refused] = Entry(refused, "its weights are not finite")
        self.rescans = 0
        self.base = BaseFacts(BASE, None, {})

    def names(self) -> list[str]:
        return sorted(self.entries)

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise UnknownAdapterError(name)
        return self.entries[name]

    def open(self, name: str) -> AdapterFiles:
        entry = self.entry(name)
        if entry.refused:
            raise AdapterRefusedError(entry.refused)
        return AdapterFiles(name, Path("/nowhere"), "d" * 64, entry.rank, entry.bytes)

    def rescan(self) -> None:
        self.rescans += 1


def tenant(name: str, *adapters: str, **rules: Any) -> Tenant:
    """A tenant whose key is `sk-laura-NAME`."""
    key = hash_of_key(f"sk-laura-{name}")
    return Tenant(name=name, keys=(key,), adapters=adapters, **rules)


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-laura-{name}"}


def file_of(*tenants: Tenant, admin: str = ADMIN) -> TenantsFile:
    """What a file with these tenants and an admin's key says."""
    said = {one.name: one.model_dump(exclude={"name"}) for one in tenants}
    return TenantsFile.model_validate({"tenants": said, "admin": {"keys": [hash_of_key(admin)]}})


@dataclass
class House:
    """An application with everything that a test may look at."""

    engine: FakeEngine
    library: FakeLibrary
    app: Any
    log: io.StringIO

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def used(self, name: str) -> Usage:
        """What a tenant has used; charges that were begun before are in it."""
        service = self.app.state.service
        usage: Usage = service.database.submit(service.limits.accounts.usage).result()[name]
        return usage

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, json=body, **options)

        return asyncio.run(once())


def behind_a_pool(fake: FakeEngine) -> Behind:
    assert BEHIND is not None
    BEHIND.append(Behind(fake))
    return BEHIND[-1]


def build(
    tokenizer: Any,
    *tenants: Tenant,
    library: FakeLibrary | None = None,
    database: Database | None = None,
    engine: dict[str, Any] | None = None,
    **settings: Any,
) -> House:
    """A house; open to everybody where neither tenants nor a database are given."""
    fake = FakeEngine(tokenizer, **(engine or {}))
    shelf = library or FakeLibrary("maths", "poems", "law", refused="broken")
    log = io.StringIO()
    if tenants:
        database = database or Database()
        replace(database, file_of(*tenants))
    app = create_app(
        ServeSettings(base=BASE, **settings),
        fake if BEHIND is None else behind_a_pool(fake),
        shelf,  # type: ignore[arg-type]
        database=database,
        log=RequestLog(log),
    )
    return House(fake, shelf, app, log)


@contextlib.contextmanager
def listening(
    house: House, server_class: Any = uvicorn.Server, keeping: bool = False
) -> Iterator[str]:
    """A real server on a free port of the loopback address, in a thread; its URL.

    With `keeping` it looks at its database all the time, as `laura serve` does.
    """
    with socket.create_server(("127.0.0.1", 0)) as place:
        config = uvicorn.Config(house.app, log_level="critical", lifespan="off", ws="none")
        server = server_class(config)

        async def serve() -> None:
            if keeping:
                house.app.state.service.warm()
            await server.serve(sockets=[place])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def until(there: Any, seconds: float = 20) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came to be so"
        time.sleep(0.01)
