"""Traces by OpenTelemetry: a span for a request at a server, and one for a sequence at an engine.

Only its API is called, which does nothing until an SDK is set up, as by the extra `otel` and
`opentelemetry-instrument laura serve ...`; where it is not installed, nothing is done at all.
Spans hold names and counts, never a text or a key.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/ (the header `traceparent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from laura.serve.context import RequestContext
from laura.serve.engines import Ended, EngineError, SequenceRequest

try:
    from opentelemetry import propagate, trace
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

HEADER = "traceparent"


@contextmanager
def traced_request(context: RequestContext, headers: Mapping[str, str]) -> Iterator[None]:
    """Work on a request within a span, under its client's where the header names one."""
    if not INSTALLED:
        yield
        return
    tracer, parent = trace.get_tracer("laura"), propagate.extract(headers)
    kind = trace.SpanKind.SERVER
    with tracer.start_as_current_span("request", parent, kind, record_exception=False) as span:
        try:
            yield
        finally:
            span.set_attributes(
                {
                    "laura.request": context.id,
                    "laura.tenant": context.tenant_name,
                    "laura.adapter": context.adapter or "-",
                    "laura.prompt_tokens": context.prompt_tokens,
                    "laura.new_tokens": context.new_tokens,
                    "http.request.method": context.method,
                    "url.path": context.path,
                    "http.response.status_code": context.status,
                }
            )


def traceparent() -> str | None:
    """The span that is worked in, for another process; None where there is none."""
    told: dict[str, str] = {}
    if INSTALLED:
        propagate.inject(told)
    return told.get(HEADER)


def traced_sequence(
    request: SequenceRequest, parent: str | None
) -> Callable[[Ended | EngineError | None], None]:
    """Begin the span of a sequence.

    Args:
        request: What is wanted.
        parent: `traceparent` of who wants it.

    Returns:
        Ends it, given the last word on it; None where it was given up.
    """
    if not INSTALLED or parent is None:
        return lambda last: None
    tracer, context = trace.get_tracer("laura"), propagate.extract({HEADER: parent})
    span = tracer.start_span("sequence", context, trace.SpanKind.SERVER)
    span.set_attributes({"laura.sequence": request.id, "laura.adapter": request.adapter or "-"})

    def end(last: Ended | EngineError | None) -> None:
        finish = "cancelled" if last is None else "error"
        if isinstance(last, Ended):
            finish = last.finish
            span.set_attribute("laura.new_tokens", last.new_tokens)
            span.set_attribute("laura.cached_tokens", last.cached_tokens)
        span.set_attribute("laura.finish", finish)
        span.end()

    return end
