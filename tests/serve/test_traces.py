"""Traces: a client's, a span at the gate below it, and one at the engine below that."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from laura.serve import traces
from laura.serve.app import create_app
from laura.serve.settings import ServeSettings
from tests.serve.houses import BASE, FakeLibrary, House, build, key, tenant
from tests.serve.pools import pooled, soon

pytestmark = pytest.mark.anyio
TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
ASKED = {"model": "maths", "prompt": "a secret", "max_tokens": 5, "temperature": 0}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces.trace, "get_tracer", provider.get_tracer)
    return exporter.get_finished_spans


async def test_a_trace_leads_through_the_gate_to_the_engine(
    micro_tokenizer: Any, spans: Any
) -> None:
    async with pooled(micro_tokenizer) as found:
        app = create_app(ServeSettings(base=BASE), found.pool, FakeLibrary("maths"))  # type: ignore[arg-type]
        house: Any = House(None, None, app, None)  # type: ignore[arg-type]
        async with house.client() as client:
            answer = await client.post("/v1/completions", json=ASKED, headers=HEADERS)
        assert answer.status_code == 200
        await soon(lambda: len(spans()) == 2)
    engine, gate = sorted(spans(), key=lambda span: span.name == "request")
    assert {f"{span.context.trace_id:032x}" for span in (engine, gate)} == {TRACE}
    assert f"{gate.parent.span_id:016x}" == CLIENT
    assert engine.parent.span_id == gate.context.span_id
    assert gate.attributes["http.response.status_code"] == 200
    assert gate.attributes["laura.new_tokens"] == engine.attributes["laura.new_tokens"] == 5
    assert engine.attributes["laura.finish"] == "length"
    assert engine.attributes["laura.adapter"] == gate.attributes["laura.adapter"] == "maths"
    assert "secret" not in f"{engine.to_json()}{gate.to_json()}"


def test_who_has_no_key_begins_no_span(micro_tokenizer: Any, spans: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    path = "/v1/completions"
    assert house.request("POST", path, ASKED, headers=HEADERS).status_code == 401
    assert spans() == ()
    strange = {**key("ann"), "traceparent": "garbage"}
    assert house.request("POST", path, ASKED, headers=strange).status_code == 200
    (span,) = spans()
    assert span.parent is None and span.attributes["laura.tenant"] == "ann"


def test_without_the_package_nothing_is_traced(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    monkeypatch.setattr(traces, "INSTALLED", False)
    house = build(micro_tokenizer)
    assert house.request("POST", "/v1/completions", ASKED, headers=HEADERS).status_code == 200
    assert traces.traceparent() is None and spans() == ()
