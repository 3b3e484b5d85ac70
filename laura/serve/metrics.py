"""Numbers for Prometheus, of this server alone.

Names that clients choose never become labels. Tenants and adapters do, but only so many:
each pair costs memory here and in every Prometheus that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from laura.serve.context import RequestContext
from laura.serve.engines import EngineState

MOST_TENANTS, MOST_PAIRS = 200, 1000
OTHER, NONE = "other", "-"
SECONDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts requests as they end, and reads the engine's state when asked.

    Args:
        state: What the engine is doing.
        dropped: Lines of the log that nobody took.
    """

    def __init__(self, state: Callable[[], EngineState], dropped: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._tenants: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(name, words, labels, registry=registry)

        def histogram(name: str, words: str) -> Histogram:
            return Histogram(name, words, ["tenant"], buckets=SECONDS, registry=registry)

        words = "Requests that are over."
        self._requests = counter("laura_requests", words, "tenant", "adapter", "status")
        words = "Tokens: of prompts, of those the ones not computed anew, and new ones."
        self._tokens = counter("laura_tokens", words, "tenant", "adapter", "kind")
        words = "Requests refused or broken off, by reason."
        self._refused = counter("laura_refused_requests", words, "tenant", "reason")
        words = "From a request's arrival to its first new text."
        self._first = histogram("laura_first_token_seconds", words)
        words = "From a request's arrival to the end of its answer."
        self._whole = histogram("laura_request_seconds", words)
        registry.register(_EngineGauges(state, dropped))

    def count(self, context: RequestContext) -> None:
        """Count a request that is over."""
        tenant, adapter = self._labels(context)
        self._requests.labels(tenant, adapter, str(context.status)).inc()
        if context.code is not None:
            self._refused.labels(tenant, context.code).inc()
        if context.adapter is None:
            return
        for kind, tokens in (
            ("prompt", context.read_tokens),
            ("cached", context.cached_tokens),
            ("new", context.new_tokens),
        ):
            self._tokens.labels(tenant, adapter, kind).inc(tokens)
        if context.first_token is not None:
            self._first.labels(tenant).observe(context.first_token)
            self._whole.labels(tenant).observe(context.seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _labels(self, context: RequestContext) -> tuple[str, str]:
        tenant, adapter = context.tenant_name, context.adapter or NONE
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
    def __init__(self, state: Callable[[], EngineState], dropped: Callable[[], int]) -> None:
        self._state, self._dropped = state, dropped

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        running = dict(list(state.running.items())[:MOST_TENANTS])
        waiting = dict(list(state.waiting.items())[:MOST_TENANTS])
        for name, words, label, found in (
            ("laura_running_sequences", "Sequences in work.", "tenant", running),
            ("laura_waiting_sequences", "Sequences that wait.", "tenant", waiting),
            ("laura_memory_bytes", "Memory of the engine.", "kind", state.memory_bytes),
        ):
            gauge = GaugeMetricFamily(name, words, labels=[label])
            for key, value in found.items():
                gauge.add_metric([key], value)
            yield gauge
        for kind, name, words, number in (
            (GaugeMetricFamily, "laura_ready", "Whether the engine answers.", state.ready),
            (GaugeMetricFamily, "laura_slots", "LoRA slots.", state.slots_total),
            (GaugeMetricFamily, "laura_slots_used", "LoRA slots in use.", len(state.slots)),
            (GaugeMetricFamily, "laura_tokens_per_second", "New tokens, last ten seconds.",
             state.tokens_per_second),
            (GaugeMetricFamily, "laura_cache_tokens", "Tokens in the cache of keys and values.",
             state.cache_tokens),
            (CounterMetricFamily, "laura_drafted_tokens", "Tokens that Laura's engine drafted.",
             state.drafted_tokens),
            (CounterMetricFamily, "laura_accepted_tokens", "Steps saved by right ones.",
             state.accepted_tokens),
            (CounterMetricFamily, "laura_dropped_log_lines", "Lines of the log that nobody read.",
             self._dropped()),
        ):  # fmt: skip
            yield kind(name, words, value=float(number))
