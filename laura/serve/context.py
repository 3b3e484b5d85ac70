"""What is known of one request, from its first byte to its last, for the log and the metrics.

A line of the log holds numbers and names, never a prompt, an answer or a key.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from laura.serve.engines import Ended, Event, NewText
from laura.serve.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

    from laura.serve.tenants import Tenant

LONGEST_PATH = 200


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


@dataclass
class RequestContext:
    """What is known of one request, from its first byte to its last; times in seconds.

    Attributes:
        adapter: The adapter that answers, "base", or None where no model was found.
        code: Why it was refused, if it was.
        new_by_sequence: New tokens of each sequence that the engine has begun.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    started: float = field(default_factory=time.monotonic)
    tenant: Tenant | None = None
    admin: bool = False
    expired: str | None = None
    adapter: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token: float | None = None
    finish: list[str] = field(default_factory=list)
    status: int = 0
    code: str | None = None
    new_by_sequence: dict[int, int] = field(default_factory=dict)

    def count(self, index: int, event: Event) -> None:
        """Count what an event of sequence `index` says."""
        if isinstance(event, Ended):
            self.cached_tokens += event.cached_tokens
            self.new_by_sequence[index] = event.new_tokens
            self.finish.append(event.finish)
            return
        # Of a sequence that is broken off only this is known: a piece is one token or more.
        piece = int(isinstance(event, NewText))
        self.new_by_sequence[index] = self.new_by_sequence.get(index, 0) + piece
        if piece and self.first_token is None:
            self.first_token = self.seconds

    @property
    def new_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.new_by_sequence.values())

    @property
    def used_tokens(self) -> int:
        """Tokens read and written; none where the engine never came to it."""
        return self.prompt_tokens + self.new_tokens if self.new_by_sequence else 0

    @property
    def seconds(self) -> float:
        """Time since it came."""
        return time.monotonic() - self.started

    @property
    def tenant_name(self) -> str:
        """Name of the tenant, "admin", or "-" for nobody we know."""
        if self.tenant is not None:
            return self.tenant.name
        return "admin" if self.admin else "-"

    def need_tenant(self) -> Tenant:
        """Whose request it is.

        Raises:
            ApiError: nobody's that we know.
        """
        if self.tenant is None:
            raise ApiError(
                401,
                "Incorrect API key provided, or none; send the header "
                "`Authorization: Bearer KEY` with the key you were given",
                "invalid_api_key",
            )
        return self.tenant

    def need_admin(self) -> str:
        """Who the admin is, for the audit log.

        Raises:
            ApiError: no admin's request.
        """
        if not self.admin:
            status = 401 if self.tenant is None else 403
            raise ApiError(status, "this needs an admin key", "admin_key_needed")
        return self.tenant_name

    def log_line(self) -> dict[str, Any]:
        """Its line in the log."""
        first = self.first_token
        expired = {} if self.expired is None else {"expired_key_of": self.expired}
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": self.id,
            "tenant": self.tenant_name,
            "adapter": self.adapter,
            "method": self.method[:LONGEST_PATH],
            "path": self.path[:LONGEST_PATH],
            "status": self.status,
            "ms": round(self.seconds * 1000, 1),
            "first_token_ms": None if first is None else round(first * 1000, 1),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "new_tokens": self.new_tokens,
            "finish": self.finish,
            "stream": self.stream,
            "code": self.code,
            **expired,
        }


def context_of(request: Request) -> RequestContext:
    """The context that the middleware has begun for a request."""
    context: RequestContext = request.state.context
    return context


class RequestLog:
    """Writes lines of JSON.

    Args:
        out: Where to; standard error in the command.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, line: dict[str, Any]) -> None:
        """Add a line."""
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()
