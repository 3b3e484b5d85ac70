"""What goes wrong in a request, as the errors of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from laura.results.errors import LauraError
from laura.serve.engines import EngineError
from laura.serve.schemas import UnsupportedError

MOST_FAULTS_TOLD = 3
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
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        told.append(f"{place}: {_words(error)}" if place else _words(error))
    if len(errors) > MOST_FAULTS_TOLD:
        told.append(f"and {len(errors) - MOST_FAULTS_TOLD} more")
    first = [part for part in errors[0]["loc"] if part != "body"]
    unsupported = isinstance(_cause(errors[0]), UnsupportedError)
    code = "unsupported_value" if unsupported else "invalid_value"
    return bad_request("; ".join(told), str(first[0]) if first else None, code)


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "this field is not known; leave it out"
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error['ctx']['error']})"
    if error["type"] == "model_attributes_type":
        return "the body must be a JSON object, with the header content-type: application/json"
    return str(_cause(error) or error["msg"])


def _cause(error: Any) -> object:
    """What a check of ours raised, if it did."""
    return error.get("ctx", {}).get("error") if error["type"] == "value_error" else None
