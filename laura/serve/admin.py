"""Whoever runs the server: what it is doing, what it shall hold, and a log of who changed what."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from laura.results.errors import StoreError
from laura.results.store import disk_faults
from laura.serve.auth import LOCAL, Tenants, without_keys
from laura.serve.context import RequestContext, context_of
from laura.serve.engines import EngineError
from laura.serve.schemas import ApiError, bad_request, of_engine, unknown_model
from laura.serve.service import Service

MOST_CHARACTERS = 200
BEGUN = "begun"
"""Outcome of the line that stands on the disk before anything is done."""
JsonObject = dict[str, Any]


class Audit:
    """Appends a line of JSON an action; what was written once is never changed.

    Args:
        path: The file; None keeps no log. It is opened for every line, so that it may be
            moved away at any time to begin a new one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(
        self, action: str, actor: str, subject: str, outcome: str, request: str | None = None
    ) -> None:
        """Add a line, on the disk when this returns.

        Keys are struck out and texts cut at 200 characters: neither a key nor a prompt
        lands here by mistake.

        Args:
            action: What was asked, such as "adapter.load".
            actor: Who asked.
            subject: Of what: an adapter, a tenant, a file.
            outcome: `BEGUN`, then "done" or why not.
            request: Its id, where it was one.

        Raises:
            StoreError: it cannot be written; then the action had better not be done.
        """
        if self._path is None:
            return
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "action": action}
        row |= {"actor": actor, "subject": subject, "outcome": outcome}
        row |= {} if request is None else {"request": request}
        line = json.dumps({key: _safe(value) for key, value in row.items()}) + "\n"
        _append(self._path, line.encode("ascii"))


def _safe(text: str) -> str:
    text = without_keys(text)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, which no other process's can come between."""
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        file = os.open(path, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                # The last line was cut off, by a power cut or a full disk.
                line = b"\n" + line
            if os.write(file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)


class Admin:
    """Carries out admin actions, each with its lines in the audit log.

    Args:
        service: What is administered.
        audit: Where actions are written down.
        tenants_file: Read anew by `reload_tenants`; None without tenants.
    """

    def __init__(self, service: Service, audit: Audit, tenants_file: Path | None) -> None:
        self._service, self._audit, self._tenants_file = service, audit, tenants_file
        self._reloading = asyncio.Lock()

    async def state(self) -> JsonObject:
        """What the engine is doing, the adapters there are, and what each tenant used."""
        service = self._service
        tenants = service.tenants
        known = [LOCAL] if tenants is None else filter(None, map(tenants.get, tenants.names))
        return {
            **asdict(service.engine.state()),
            "stopping": service.stopping,
            "uptime_seconds": round(time.time() - service.started, 1),
            "base": service.settings.base,
            "context_tokens": service.engine.context_tokens,
            "adapters": [
                {
                    "name": entry.name,
                    "refused": entry.refused,
                    "warnings": list(entry.warnings),
                    "rank": entry.rank,
                    "bytes": entry.bytes,
                }
                for entry in await service.entries()
            ],
            "tenants": {one.name: asdict(service.limits.usage(one)) for one in known},
        }

    async def load(self, name: str) -> JsonObject:
        """Bring an adapter into memory; one that is pinned stays so."""
        return await self._load(name, pin=self._is_pinned(name))

    async def pin(self, name: str) -> JsonObject:
        """Bring an adapter into memory and keep it there."""
        return await self._load(name, pin=True)

    async def unpin(self, name: str) -> JsonObject:
        """Let an adapter leave when its place is needed."""
        if not self._is_pinned(name):
            raise bad_request(f"{name!r} is not pinned", "name")
        return await self._load(name, pin=False)

    async def unload(self, name: str) -> JsonObject:
        """Free an adapter's place."""
        self._check_name(name)
        return {"adapter": name, "unloaded": await self._service.engine.unload(name)}

    async def rescan(self) -> JsonObject:
        """Look for new, changed and gone adapters."""
        await self._service.rescan()
        return {"adapters": self._service.library.names()}

    async def reload_tenants(self) -> JsonObject:
        """Read the tenants file anew; what tenants have used is kept."""
        file, service = self._tenants_file, self._service
        if file is None:
            raise bad_request("this server was started without a tenants file")
        async with self._reloading:  # else an older file, read longer, could come last
            try:
                # A thousand tenants take most of a second, nearly all of it for the YAML.
                tenants = await asyncio.to_thread(Tenants.read, file)
            except StoreError as error:
                raise bad_request(f"nothing is changed: {error}") from error
            if service.tenants is not None and service.tenants.has_admin and not tenants.has_admin:
                raise bad_request(
                    f"nothing is changed: {file} has no admin key, so nobody could change anything "
                    f"here any more; `laura tenants admin --file {file}` makes one"
                )
            service.tenants = tenants
            service.limits.update(tenants)
        return {"tenants": list(tenants.names)}

    async def audited(
        self,
        context: RequestContext,
        action: str,
        subject: str,
        work: Callable[[], Awaitable[JsonObject]],
    ) -> JsonObject:
        """Do it, with a line in the audit log before and another after it.

        The first is on the disk before anything is done, so that no deed is without a trace,
        whatever ends the process meanwhile. Both have the request's id.

        Args:
            context: Of the request.
            action: What is asked, such as "adapter.load".
            subject: Of what.
            work: Does it.

        Raises:
            ApiError: it is no admin's request, it could not be done, or the log cannot be
                written: whoever runs the server has to mend that first.
        """
        actor = context.need_admin()

        async def note(outcome: str) -> None:
            write = partial(self._audit.write, request=context.id)
            await asyncio.to_thread(write, action, actor, subject, outcome)

        try:
            await note(BEGUN)
        except StoreError as error:
            raise ApiError(503, f"nothing is done: {error}", "audit_failed") from error
        outcome = "failed"
        try:
            try:
                done = await work()
            except EngineError as error:
                raise of_engine(error) from error
            outcome = "done"
            return done
        except ApiError as fault:
            outcome = f"refused: {fault.code}"
            raise
        finally:
            try:
                await note(outcome)
            except StoreError as error:
                told = f"{action} {subject}: {outcome}; the audit log says only that it began"
                raise ApiError(500, f"{told}: {error}", "audit_failed") from error

    async def _load(self, name: str, pin: bool) -> JsonObject:
        self._check_name(name)
        await self._service.engine.load(await self._service.files(name), pin)
        return {"adapter": name, "pinned": pin}

    def _check_name(self, name: str) -> None:
        if not self._service.knows(name):
            raise unknown_model(name)

    def _is_pinned(self, name: str) -> bool:
        return any(one.adapter == name and one.pinned for one in self._service.engine.state().slots)


def admin_routes(admin: Admin) -> APIRouter:
    """`/admin/...`; every route wants an admin key."""
    routes = APIRouter(prefix="/admin", tags=["admin"])

    @routes.get("/state")
    async def state(request: Request) -> JsonObject:
        """What the server is doing."""
        context_of(request).need_admin()
        return await admin.state()

    @routes.post("/tenants/reload")
    async def reload_tenants(request: Request) -> JsonObject:
        """Read the tenants file anew."""
        context = context_of(request)
        return await admin.audited(context, "tenants.reload", "tenants", admin.reload_tenants)

    @routes.post("/adapters/rescan")
    async def rescan(request: Request) -> JsonObject:
        """Look for new, changed and gone adapters."""
        context = context_of(request)
        return await admin.audited(context, "adapters.rescan", "adapters", admin.rescan)

    def add(action: str, work: Callable[[str], Awaitable[JsonObject]]) -> None:
        async def act(request: Request, name: str) -> JsonObject:
            context = context_of(request)
            return await admin.audited(context, f"adapter.{action}", name, partial(work, name))

        path, name = f"/adapters/{{name}}/{action}", f"{action} adapter"
        routes.add_api_route(path, act, methods=["POST"], name=name, description=work.__doc__)

    for action in ("load", "unload", "pin", "unpin"):
        add(action, getattr(admin, action))
    return routes
