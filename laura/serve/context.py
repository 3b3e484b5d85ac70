"""One request from its first byte to its last: what is known of it, and what goes wrong in it.

Errors are those of OpenAI's API. A line of the log holds numbers and names, never a prompt, an
answer or a key.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.requests import Request

from laura.engine.detokenizer import TextDelta
from laura.results.errors import LauraError
from laura.serve.auth import Tenant
from laura.serve.engines import Ended, EngineError, Event
from laura.serve.schemas import UnsupportedError

LONGEST_PATH = 200
MOST_FAULTS_TOLD, LONGEST_FIELD = 3, 100
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(LauraError, ValueError):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: What came, what is allowed, what to do; for the client.
        code: One word for programs; also the reason that the metrics count.
        param: Field of the request that is wrong.
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(_writable(message))
        self.status, self.code = status, code
        self.param = None if param is None else _writable(param)
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        if self.retry_after is not None:
            return {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}


def _writable(text: str) -> str:
    """A client's own words come back in messages; half a surrogate pair has no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that cannot be meant."""
    return ApiError(400, message, code, param)


def adapter_refused(message: str) -> ApiError:
    """An adapter that is not served."""
    return bad_request(message, "model", "adapter_refused")


def unknown_model(name: str) -> ApiError:
    """The same for a model that is not there and one that is another's."""
    return ApiError(
        404,
        f"The model {name!r} does not exist or you do not have access to it; "
        "GET /v1/models lists those you may use",
        "model_not_found",
        "model",
    )


def of_engine(error: EngineError) -> ApiError:
    """What an engine's refusal is to a client."""
    if error.kind == "adapter":
        return adapter_refused(str(error))
    if error.kind == "request":
        return bad_request(str(error))
    status, code = (429, "queue_full") if error.kind == "full" else (503, "engine_gone")
    return ApiError(status, str(error), code, retry_after=error.retry_after or 1)


def of_validation(errors: Sequence[Any]) -> ApiError:
    """The first faults of a request's body, by field; never what it held there."""
    told = []
    for error in errors[:MOST_FAULTS_TOLD]:
        place = ".".join(map(str, error["loc"]))[:LONGEST_FIELD]
        told.append(f"{place}: {_words(error)}" if place else _words(error))
    if len(errors) > MOST_FAULTS_TOLD:
        told.append(f"and {len(errors) - MOST_FAULTS_TOLD} more")
    first = errors[0]["loc"]
    unsupported = isinstance(_cause(errors[0]), UnsupportedError)
    code = "unsupported_value" if unsupported else "invalid_value"
    return bad_request("; ".join(told), str(first[0])[:LONGEST_FIELD] if first else None, code)


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "this field is not known; leave it out"
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error['ctx']['error']})"
    if error["type"] == "model_type" and not error["loc"]:
        return "the body must be a JSON object"
    return str(_cause(error) or error["msg"])


def _cause(error: Any) -> object:
    """What a check of ours raised, if it did."""
    return error.get("ctx", {}).get("error") if error["type"] == "value_error" else None


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


@dataclass
class RequestContext:
    """What is known of one request, from its first byte to its last; times in seconds.

    Attributes:
        adapter: The adapter that answers, "base", or None where no model was found.
        code: Why it was refused, if it was.
        prompt_tokens: Of all its prompts.
        read_tokens: Of the prompts that the engine has begun to read.
        new_by_sequence: New tokens of each sequence that the engine has begun.
        scores: Log-probabilities that it may come to.
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
    read_tokens: int = 0
    cached_tokens: int = 0
    first_token: float | None = None
    finish: list[str] = field(default_factory=list)
    status: int = 0
    code: str | None = None
    new_by_sequence: dict[int, int] = field(default_factory=dict)
    scores: int = 0

    def count(self, index: int, reads: int, event: Event) -> None:
        """Count what an event of sequence `index` says.

        Args:
            index: Counted from 0.
            reads: Tokens of its prompt; 0 where another sequence has read it.
            event: The first one says that it was read.
        """
        if index not in self.new_by_sequence:
            self.read_tokens += reads
        if isinstance(event, Ended):
            self.cached_tokens += event.cached_tokens
            self.new_by_sequence[index] = event.new_tokens
            self.finish.append(event.finish)
            return
        # Of a sequence whose engine dies only this is known: a piece is one token or more.
        piece = int(isinstance(event, TextDelta))
        self.new_by_sequence[index] = self.new_by_sequence.get(index, 0) + piece
        if piece and self.first_token is None:
            self.first_token = self.seconds

    @property
    def new_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.new_by_sequence.values())

    @property
    def used_tokens(self) -> int:
        """Tokens read and written, whoever has waited for them."""
        return self.read_tokens + self.new_tokens

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
        dropped: Tells how many lines it did not take.
    """

    def __init__(self, out: TextIO, dropped: Callable[[], int] = lambda: 0) -> None:
        self._out, self.dropped = out, dropped

    def write(self, line: dict[str, Any]) -> None:
        """Add a line."""
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()
