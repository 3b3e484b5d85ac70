"""One request from its first byte to its last: what is known of it, and what is told of it.

A line of the log holds numbers and names, never a prompt, an answer or a key. Metrics are numbers
for Prometheus, of this server alone: names that clients choose never become labels; tenants and
adapters do, but only so many, since each pair costs memory here and in every Prometheus that
reads it.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request

from laura.engine.detokenizer import TextDelta
from laura.serve.auth import Tenant
from laura.serve.engines import Ended, EngineState, Event
from laura.serve.schemas import ApiError

LONGEST_PATH = 200
MOST_TENANTS, MOST_PAIRS = 200, 1000
OTHER, NONE = "other", "-"
SECONDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


@dataclass
class RequestContext:
    """What is known of one request, from its first byte to its last; times in seconds.

    Attributes:
        adapter: The adapter that answers, "base", or None where no model was found.
        code: Why it was refused, if it was.
        param: The field for which it was, if it was for one.
        prompt_tokens: Of all its prompts.
        read_tokens: Of the prompts that the engine has begun to read.
        cached_tokens: Of these, those that were not computed anew.
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
    param: str | None = None
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
            self.cached_tokens += min(reads, event.cached_tokens)
            self.new_by_sequence[index] = event.new_tokens
            self.finish.append(event.finish)
            return
        # Of a sequence whose engine dies only this is known: a piece is one token or more.
        piece = int(isinstance(event, TextDelta))
        self.new_by_sequence[index] = self.new_by_sequence.get(index, 0) + piece
        if piece and self.first_token is None:
            self.first_token = self.seconds

    def refuse(self, fault: ApiError) -> None:
        """Note why it is refused."""
        self.code, self.param = fault.code, fault.param

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
            "param": self._told_param,
            **expired,
        }

    @property
    def _told_param(self) -> str | None:
        """A client may call a field what they like, also by a key or a whole prompt."""
        if self.param is None or re.fullmatch(r"[A-Za-z0-9_.]{1,100}", self.param):
            return self.param
        return OTHER


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


# Of each engine of a pool.
OF_ENGINES: tuple[tuple[str, str, Callable[[EngineState], float]], ...] = (
    ("laura_engine_ready", "Whether this engine answers.", lambda engine: engine.ready),
    ("laura_engine_running_sequences", "Sequences that it has in work.",
     lambda engine: sum(engine.running.values())),
    ("laura_engine_waiting_sequences", "Sequences that wait in its queue.",
     lambda engine: sum(engine.waiting.values())),
    ("laura_engine_tokens_per_second", "Its new tokens, last ten seconds.",
     lambda engine: engine.tokens_per_second),
    ("laura_engine_cache_tokens", "Tokens in its cache of keys and values.",
     lambda engine: engine.cache_tokens),
)  # fmt: skip


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
        for name, words, number_of in OF_ENGINES if state.engines else ():
            gauge = GaugeMetricFamily(name, words, labels=["engine"])
            for address, engine in state.engines.items():
                gauge.add_metric([address], float(number_of(engine)))
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
