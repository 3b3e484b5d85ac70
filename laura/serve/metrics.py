"""Numbers for Prometheus, of this server alone.

Names that clients choose never become labels. Tenants and adapters do, but only so many:
each pair costs memory here and in every Prometheus that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from laura.serve.engines import EngineState
from laura.serve.visits import Visit

MOST_TENANTS, MOST_PAIRS = 200, 1000
OTHER, NONE = "other", "-"
SECONDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts requests as they end, and reads the engine's state when asked.

    Args:
        state: What the engine is doing.
    """

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._registry = registry = CollectorRegistry()
        self._tenants: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        pair = ["tenant", "adapter"]
        self._requests = Counter(
            "laura_requests", "Requests that are over.", [*pair, "status"], registry=registry
        )
        self._tokens = Counter(
            "laura_tokens",
            "Tokens: of prompts, of those the ones not computed anew, and new ones.",
            [*pair, "kind"],
            registry=registry,
        )
        self._refused = Counter(
            "laura_refused_requests",
            "Requests refused or broken off, by reason.",
            ["tenant", "reason"],
            registry=registry,
        )
        self._first = Histogram(
            "laura_first_token_seconds",
            "From a request's arrival to its first new text.",
            ["tenant"],
            buckets=SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "laura_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["tenant"],
            buckets=SECONDS,
            registry=registry,
        )
        registry.register(_EngineGauges(state))

    def count(self, visit: Visit) -> None:
        """Count a request that is over."""
        tenant, adapter = self._labels(visit)
        self._requests.labels(tenant, adapter, str(visit.status)).inc()
        if visit.code is not None:
            self._refused.labels(tenant, visit.code).inc()
        if visit.adapter is None:
            return
        for kind, tokens in (
            ("prompt", visit.prompt_tokens if visit.new_by_sequence else 0),
            ("cached", visit.cached_tokens),
            ("new", visit.new_tokens),
        ):
            self._tokens.labels(tenant, adapter, kind).inc(tokens)
        if visit.first_token is not None:
            self._first.labels(tenant).observe(visit.first_token)
            self._whole.labels(tenant).observe(visit.seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _labels(self, visit: Visit) -> tuple[str, str]:
        tenant, adapter = visit.tenant_name, visit.adapter or NONE
        if tenant not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS:
                tenant = OTHER
            self._tenants.add(tenant)
        if (tenant, adapter) not in self._pairs:
            if len(self._pairs) >= MOST_PAIRS:
                adapter = OTHER
            self._pairs.add((tenant, adapter))
        return tenant, adapter


class _EngineGauges(Collector):
    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        by_tenant = ["tenant"]
        for name, words, found in (
            ("laura_running_sequences", "Sequences in work.", state.running),
            ("laura_waiting_sequences", "Sequences that wait.", state.waiting),
        ):
            gauge = GaugeMetricFamily(name, words, labels=by_tenant)
            for tenant, count in list(found.items())[:MOST_TENANTS]:
                gauge.add_metric([tenant], count)
            yield gauge
        memory = GaugeMetricFamily("laura_memory_bytes", "Memory of the engine.", labels=["kind"])
        for kind, size in state.memory_bytes.items():
            memory.add_metric([kind], size)
        yield memory
        for name, words, value in (
            ("laura_ready", "Whether the engine answers.", float(state.ready)),
            ("laura_slots", "Places for adapters in memory.", state.slots_total),
            ("laura_slots_used", "Adapters in memory.", len(state.slots)),
            ("laura_tokens_per_second", "New tokens, last ten seconds.", state.tokens_per_second),
            ("laura_cache_tokens", "Tokens in the cache of keys and values.", state.cache_tokens),
        ):
            yield GaugeMetricFamily(name, words, value=value)
        for name, words, count in (
            ("laura_drafted_tokens", "Tokens that Laura's engine drafted.", state.drafted_tokens),
            ("laura_accepted_tokens", "Steps saved by right ones.", state.accepted_tokens),
        ):
            yield CounterMetricFamily(name, words, value=count)
