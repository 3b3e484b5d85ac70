"""Whoever runs the server: what it is doing, what it shall hold, and a log of who changed what."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from laura.serve.audit import BEGUN, Audit
from laura.serve.context import RequestContext, context_of
from laura.serve.engines import EngineError
from laura.serve.schemas import ApiError, bad_request, of_engine, unknown_model
from laura.serve.service import Service

JsonObject = dict[str, Any]


class Admin:
    """Carries out admin actions, each with its lines in the audit log.

    Args:
        service: What is administered.
        audit: Where actions are written down.
    """

    def __init__(self, service: Service, audit: Audit) -> None:
        self._service, self._audit = service, audit

    async def state(self) -> JsonObject:
        """What the engine is doing, the adapters there are, and what each tenant used."""
        service = self._service
        usage = await service.database.run(service.limits.accounts.usage)
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
            "tenants": {name: asdict(used) for name, used in usage.items()},
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
            await self._service.database.run(write, action, actor, subject, outcome)

        try:
            await note(BEGUN)
        except ApiError as error:
            raise ApiError(503, f"nothing is done: {error.__cause__}", "audit_failed") from error
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
            except ApiError as error:
                told = f"{action} {subject}: {outcome}; the audit log says only that it began"
                raise ApiError(500, f"{told}: {error.__cause__}", "audit_failed") from error

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
