"""The routes of whoever runs the server: what it is doing, and what it shall hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from laura.results.errors import StoreError
from laura.serve.audit import BEGUN
from laura.serve.engines import EngineError
from laura.serve.faults import HttpFault, bad_request, of_engine, unknown_model
from laura.serve.service import Service
from laura.serve.tenants import LOCAL, Tenants
from laura.serve.visits import Visit, visit_of


class AdminDesk:
    """Carries out admin actions, each with its line in the audit log.

    Args:
        service: What is administered.
        tenants_file: Read anew by `reload_tenants`; None without tenants.
    """

    def __init__(self, service: Service, tenants_file: Path | None) -> None:
        self._service, self._tenants_file = service, tenants_file

    async def state(self) -> dict[str, Any]:
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

    async def load(self, name: str) -> dict[str, Any]:
        """Bring an adapter into memory; one that is pinned stays so."""
        return await self._load(name, pin=self._slot_is_pinned(name))

    async def pin(self, name: str) -> dict[str, Any]:
        """Bring an adapter into memory and keep it there."""
        return await self._load(name, pin=True)

    async def unpin(self, name: str) -> dict[str, Any]:
        """Let an adapter leave when its place is needed."""
        if not self._slot_is_pinned(name):
            raise bad_request(f"{name!r} is not pinned", "name")
        return await self._load(name, pin=False)

    async def unload(self, name: str) -> dict[str, Any]:
        """Free an adapter's place."""
        self._check_name(name)
        return {"adapter": name, "unloaded": await self._service.engine.unload(name)}

    async def rescan(self) -> dict[str, Any]:
        """Look for new, changed and gone adapters."""
        await self._service.rescan()
        return {"adapters": self._service.library.names()}

    async def reload_tenants(self) -> dict[str, Any]:
        """Read the tenants file anew; what tenants have used is kept."""
        if self._tenants_file is None:
            raise bad_request("this server was started without a tenants file")
        try:
            tenants = Tenants.read(self._tenants_file)
        except StoreError as error:
            raise bad_request(f"nothing is changed: {error}") from error
        self._service.tenants = tenants
        self._service.limits.update(tenants)
        return {"tenants": list(tenants.names)}

    async def audited(
        self, visit: Visit, action: str, subject: str, work: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Do it, with a line in the audit log before and another after it.

        The first is on the disk before anything is done, so that no deed is without a trace,
        whatever ends the process meanwhile. Both have the request's id.

        Args:
            visit: Whose request it is.
            action: What is asked, such as "adapter.load".
            subject: Of what.
            work: Does it.

        Raises:
            HttpFault: it is no admin's request, it could not be done, or the log cannot be
                written.
        """
        actor = visit.need_admin()

        async def note(outcome: str) -> None:
            write = partial(self._service.audit.write, request=visit.id)
            await asyncio.to_thread(write, action, actor, subject, outcome)

        try:
            await note(BEGUN)
        except StoreError as error:
            raise _unwritten(f"nothing is done: {error}", 503) from error
        outcome = "failed"
        try:
            try:
                done = await work()
            except EngineError as error:
                raise of_engine(error) from error
            outcome = "done"
            return done
        except HttpFault as fault:
            outcome = f"refused: {fault.code}"
            raise
        finally:
            try:
                await note(outcome)
            except StoreError as error:
                told = f"{action} {subject}: {outcome}; the audit log says only that it began"
                raise _unwritten(f"{told}: {error}", 500) from error

    async def _load(self, name: str, pin: bool) -> dict[str, Any]:
        self._check_name(name)
        await self._service.engine.load(await self._service.files(name), pin)
        return {"adapter": name, "pinned": pin}

    def _check_name(self, name: str) -> None:
        if not self._service.knows(name):
            raise unknown_model(name)

    def _slot_is_pinned(self, name: str) -> bool:
        return any(one.adapter == name and one.pinned for one in self._service.engine.state().slots)


def admin_routes(desk: AdminDesk) -> APIRouter:
    """`/admin/...`; every route wants an admin key."""
    routes = APIRouter(prefix="/admin", tags=["admin"])

    @routes.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        """What the server is doing."""
        visit_of(request).need_admin()
        return await desk.state()

    @routes.post("/tenants/reload")
    async def reload_tenants(request: Request) -> dict[str, Any]:
        """Read the tenants file anew."""
        return await desk.audited(
            visit_of(request), "tenants.reload", "tenants", desk.reload_tenants
        )

    @routes.post("/adapters/rescan")
    async def rescan(request: Request) -> dict[str, Any]:
        """Look for new, changed and gone adapters."""
        return await desk.audited(visit_of(request), "adapters.rescan", "adapters", desk.rescan)

    actions: dict[str, Callable[[str], Awaitable[dict[str, Any]]]] = {
        "load": desk.load,
        "unload": desk.unload,
        "pin": desk.pin,
        "unpin": desk.unpin,
    }
    for action, work in actions.items():
        _add_action(routes, desk, action, work)
    return routes


def _unwritten(message: str, status: int) -> HttpFault:
    """The audit log cannot be written; whoever runs the server has to mend that first."""
    return HttpFault(status, message, "audit_failed")


def _add_action(
    routes: APIRouter,
    desk: AdminDesk,
    action: str,
    work: Callable[[str], Awaitable[dict[str, Any]]],
) -> None:
    async def act(request: Request, name: str) -> dict[str, Any]:
        return await desk.audited(visit_of(request), f"adapter.{action}", name, partial(work, name))

    routes.post(f"/adapters/{{name}}/{action}", name=f"{action} adapter", description=work.__doc__)(
        act
    )
