"""Requests made up from the OpenAPI schema itself: none breaks the server or the schema."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.serve.houses import BASE, build

pytestmark = pytest.mark.slow
HERE = {"host": "localhost"}
OF_TOOLS = (
    "tools", "tool_choice", "tool_calls", "tool_call_id", "response_format", "structured_outputs",
)  # fmt: skip
ANSWERS = {"/v1/chat/completions", "/v1/completions"}


@pytest.mark.filterwarnings("ignore")
def test_no_request_breaks_the_schema(micro_tokenizer: Any) -> None:
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
        unsupported_method,
    )

    checks = [
        not_a_server_error, status_code_conformance, content_type_conformance,
        response_schema_conformance, response_headers_conformance, negative_data_rejection,
        unsupported_method,
    ]  # fmt: skip
    house = build(micro_tokenizer, request_seconds=5, engine={"end_after": 5})
    schema = schemathesis.openapi.from_asgi("/openapi.json", house.app, headers=HERE)
    seen: dict[str, set[int]] = {}
    bounded = settings(
        max_examples=40, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for result in schema.get_all_operations():
        operation = result.ok()

        @bounded
        @schemathesis_given(operation)
        def attempt(case: Any) -> None:
            model = case.body.get("model") if isinstance(case.body, dict) else None
            # A name at random is unknown nearly always: that would be all that is tried.
            if isinstance(model, str) and sum(map(ord, model)) % 2:
                case.body["model"] = BASE
                # Their parts must fit one another, which a schema cannot say.
                messages = case.body.get("messages")
                parts = [part for part in messages or () if isinstance(part, dict)]
                for part in (case.body, *parts):
                    for key in OF_TOOLS:
                        part.pop(key, None)
            response = case.call(headers=HERE)
            seen.setdefault(case.path, set()).add(response.status_code)
            case.validate_response(response, checks=checks)

        attempt()
    assert {200, 400, 404} <= seen["/v1/completions"], seen
    assert {200, 400, 404} <= seen["/v1/chat/completions"], seen
    assert "traceback" not in house.log.getvalue()


def schemathesis_given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())


def test_the_schema_tells_what_is_there(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)

    paths = house.request("GET", "/openapi.json").json()["paths"]
    assert ANSWERS | {
        "/tokenize",
        "/health",
        "/v1/models",
        "/healthz",
        "/readyz",
        "/metrics",
        "/admin/state",
    } <= set(paths)
    for path in ANSWERS:
        told = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "429", "503"} <= set(told)
        assert "422" not in told
