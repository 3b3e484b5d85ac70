"""Tenants' sequences before a model: who is next, and their events on the way back.

`FairQueue`: every tenant has a counter of tokens served, divided by its priority; the waiting
tenant with the lowest counter is next, first come first served within it. A tenant that comes
back after a pause starts at the lowest counter of those who wait: idling earns no credit.

Source: Sheng et al. 2024, arXiv:2401.00588, algorithm 2 (virtual token counter). A prompt's
token and a new token weigh the same here.

`AsyncEngine` is what Laura's own engine and vLLM share: the queue, what cannot be meant, what a
step brought as events. Everything here runs in the event loop's thread, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from laura.engine.sampler import check_settings, draw_of
from laura.engine.scheduler import StepOutput, TokenSequence
from laura.results.errors import UsageError
from laura.serve.engines import (
    AdapterFiles,
    Ended,
    EngineError,
    EngineState,
    Finish,
    PromptScores,
    SequenceRequest,
    Tell,
)

RATE_SECONDS = 10.0

Item = TypeVar("Item")
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0


class QueueFull(Exception):
    """No more can wait; its text is for the client.

    Args:
        tenants_own: Whether it is the tenant's own share that is full.
    """

    def __init__(self, tenants_own: bool) -> None:
        whose = "of your requests" if tenants_own else "requests"
        super().__init__(f"too many {whose} wait already; try again later")
        self.tenants_own = tenants_own


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    item: Item
    tokens: int


class FairQueue(Generic[Item]):
    """Items that wait, by tenant.

    Args:
        most: Most items that wait.
        most_per_tenant: Most items of one tenant that wait.
    """

    def __init__(self, most: int, most_per_tenant: int) -> None:
        self.most, self.most_per_tenant = most, most_per_tenant
        self._queues: dict[str, dict[int, _Waiting[Item]]] = {}
        self._served: dict[str, float] = {}
        self._priority: dict[str, float] = {}
        self._last = 0.0  # counter of the tenant that left the queue last
        self._count = self._tokens = 0

    def __len__(self) -> int:
        return self._count

    def put(self, item: Item, tenant: str, priority: float, tokens: int) -> None:
        """Let an item wait.

        Args:
            item: What waits.
            tenant: Whose it is.
            priority: The tenant's share against others; above 0.
            tokens: How many tokens it may cost, for the estimate of waiting.

        Raises:
            QueueFull: there is no place.
        """
        own = self._queues.get(tenant, {})
        if len(own) >= self.most_per_tenant or self._count >= self.most:
            raise QueueFull(len(own) >= self.most_per_tenant)
        if tenant not in self._queues:
            others = [self._served[other] for other in self._queues]
            lowest = min(others) if others else self._last
            self._served[tenant] = max(self._served.get(tenant, 0.0), lowest)
            self._queues[tenant] = own
        self._priority[tenant] = priority
        own[id(item)] = _Waiting(item, tokens)
        self._count += 1
        self._tokens += tokens

    def in_order(self) -> Iterator[Item]:
        """All that wait, the next one first, as the counters stand now.

        Who takes one out or charges a tenant asks anew: the order may have changed.
        """
        for tenant in sorted(self._queues, key=lambda one: self._served[one]):
            for waiting in self._queues[tenant].values():
                yield waiting.item

    def remove(self, item: Item, tenant: str) -> bool:
        """Take an item out; whether it was there."""
        own = self._queues.get(tenant)
        found = own.pop(id(item), None) if own else None
        if own is None or found is None:
            return False
        self._count -= 1
        self._tokens -= found.tokens
        if not own:
            del self._queues[tenant]
            self._last = self._served[tenant]
        return True

    def charge(self, tenant: str, tokens: int) -> None:
        """Count tokens that a tenant was served."""
        served = self._served.get(tenant, 0.0)
        self._served[tenant] = served + tokens / self._priority.get(tenant, 1.0)

    def waiting(self) -> dict[str, int]:
        """How many items of each tenant wait."""
        return {tenant: len(own) for tenant, own in self._queues.items()}

    def seconds_until_room(self, tokens_per_second: float, tenants_own: bool) -> float:
        """About when the next place becomes free, for Retry-After; whole seconds.

        One item must be served: the mean of those that wait. Where a tenant's own share is
        full, the others that wait are served in between.
        """
        if not self._count or tokens_per_second <= 0:
            return LEAST_RETRY_SECONDS
        seconds = self._tokens / self._count / tokens_per_second
        seconds *= len(self._queues) if tenants_own else 1
        return float(min(max(math.ceil(seconds), LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS))


@dataclass(eq=False, kw_only=True)
class ServedSequence(TokenSequence):
    """A tenant's sequence, waiting or in work.

    Attributes:
        request: What is wanted.
        adapter: Its adapter's checked files; None for the base.
        tell: Gets its events.
    """

    request: SequenceRequest
    adapter: AdapterFiles | None
    tell: Tell

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.request.tenant


class AsyncEngine(ABC):
    """A `ServingEngine` but for the model.

    Args:
        tokenizer: The base's tokenizer.
        context_tokens: Most tokens of prompt and answer together.
        vocabulary: Tokens that the model has.
        fingerprint: Hash of the base's weights.
        max_rank: Highest rank of an adapter.
        most_waiting: Most sequences that wait; no tenant may take more than half of it.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_tokens: int,
        vocabulary: int,
        fingerprint: str,
        *,
        max_rank: int,
        most_waiting: int,
    ) -> None:
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        self.context_tokens, self.vocabulary, self.max_rank = context_tokens, vocabulary, max_rank
        self._queue = FairQueue[ServedSequence](most_waiting, max(1, most_waiting // 2))
        self._running: dict[str, ServedSequence] = {}
        self._came: deque[tuple[float, int]] = deque()
        self._ready, self._why_not = False, "it is starting"

    def submit(
        self, request: SequenceRequest, adapter: AdapterFiles | None, tell: Tell
    ) -> Callable[[], None]:
        """See `ServingEngine.submit`."""
        if (request.adapter is None) != (adapter is None):
            raise ValueError("a request names an adapter exactly where its files are given")
        self._check(request)
        if adapter is not None:
            self._check_adapter(adapter)
        if not self._ready:
            raise self._gone()
        sequence = ServedSequence(
            request.tenant,
            request.prompt,
            request.max_new_tokens,
            draw=draw_of(request),
            stop=request.stop,
            top=request.top_logprobs,
            scores_prompt=request.prompt_logprobs,
            ignore_end=request.ignore_end,
            request=request,
            adapter=adapter,
            tell=tell,
        )
        try:
            cost = len(request.prompt) + request.max_new_tokens
            self._queue.put(sequence, request.tenant, request.priority, cost)
        except QueueFull as full:
            seconds = self._queue.seconds_until_room(self._tokens_per_second(), full.tenants_own)
            raise EngineError(str(full), "full", seconds) from None
        self._wake()
        return partial(self._cancel, sequence)

    def state(self) -> EngineState:
        """See `ServingEngine.state`."""
        return replace(
            self._figures(),
            ready=self._ready,
            why_not=self._why_not,
            running=dict(Counter(one.tenant for one in self._running.values())),
            waiting=self._queue.waiting(),
            tokens_per_second=self._tokens_per_second(),
        )

    @abstractmethod
    def _figures(self) -> EngineState:
        """Adapters and memory as they are."""

    @abstractmethod
    def _wake(self) -> None:
        """Begin what may begin: something has changed."""

    @abstractmethod
    def _drop(self, sequence: ServedSequence) -> None:
        """Compute no more of one that was given up."""

    @abstractmethod
    def _gone(self) -> EngineError:
        """What is told while there is no engine."""

    def _check(self, request: SequenceRequest) -> None:
        """Refuse what cannot be meant, before it stands in the queue.

        Raises:
            EngineError: kind "request", with every fault.
        """
        faults = []
        try:
            check_settings(request)
        except UsageError as error:
            faults.append(str(error))
        prompt, new = len(request.prompt), request.max_new_tokens
        least, most = 0 if request.prompt_logprobs else 1, self.context_tokens - prompt
        if not prompt:
            faults.append("the prompt is empty")
        elif not 0 <= min(request.prompt) <= max(request.prompt) < self.vocabulary:
            faults.append(f"token ids must be 0 to {self.vocabulary - 1}")
        if not least <= new <= most:
            faults.append(
                f"{new} new tokens were asked for after a prompt of {prompt}; the context has "
                f"{self.context_tokens} tokens, so allowed are {least} to {most}"
            )
        if not 0 <= (request.top_logprobs or 0) <= self.vocabulary:
            faults.append(f"top_logprobs must be 0 to {self.vocabulary}")
        if request.priority <= 0:
            faults.append("the priority must be above 0")
        if faults:
            raise EngineError("; ".join(faults), "request")

    def _check_adapter(self, adapter: AdapterFiles) -> None:
        """Refuse an adapter that no slot is large enough for.

        Raises:
            EngineError: kind "adapter".
        """
        if adapter.rank > self.max_rank:
            raise EngineError(
                f"adapter {adapter.name} has rank {adapter.rank}; this server takes at most "
                f"{self.max_rank}",
                "adapter",
            )

    def _refuse(self, sequence: ServedSequence, error: EngineError) -> None:
        """Send a waiting sequence away."""
        if self._queue.remove(sequence, sequence.tenant):
            sequence.tell(error)

    def _begun(self, sequence: ServedSequence) -> bool:
        """Take a sequence from the queue into work; False where it was given up meanwhile."""
        if not self._queue.remove(sequence, sequence.tenant):
            return False
        self._queue.charge(sequence.tenant, len(sequence.prompt))
        self._running[sequence.request.id] = sequence
        return True

    def _take_in(self, outputs: Iterable[StepOutput]) -> None:
        """What a step brought, as events."""
        tokens = 0
        for output in outputs:
            one = output.sequence
            assert isinstance(one, ServedSequence)
            if one.request.id not in self._running:  # it was given up meanwhile
                continue
            tokens += 1
            self._queue.charge(one.tenant, 1)
            if output.prompt:
                one.tell(PromptScores(output.prompt))
            if output.delta.text or output.delta.scores:
                one.tell(output.delta)
            if output.finish:
                self._end(one, _ended(one, "length" if output.finish == "length" else "stop"))
            elif output.fault:
                what = f"the answer broke off: {output.fault}"
                self._end(one, EngineError(what, "adapter" if one.adapter else "request"))
        if tokens:
            self._came.append((time.monotonic(), tokens))

    def _end(self, sequence: ServedSequence, last: Ended | EngineError) -> None:
        """Tell a running sequence's last event."""
        del self._running[sequence.request.id]
        sequence.tell(last)
        # A place is free: who waits for it is looked at, also where nobody runs.
        self._wake()

    def _cancel(self, sequence: ServedSequence) -> None:
        """Forget a sequence, waiting or in work; what was computed of it is told."""
        if not self._queue.remove(sequence, sequence.tenant):
            if self._running.pop(sequence.request.id, None) is None:
                return
            self._drop(sequence)
            sequence.tell(_ended(sequence, "cancelled"))
        self._wake()

    def _send_away(self) -> None:
        """Nobody waits any more."""
        for one in list(self._queue.in_order()):
            self._refuse(one, self._gone())

    def _break_off(self, in_order: bool) -> None:
        """Nothing runs any more: it was cancelled in order, or the engine has gone."""
        for one in list(self._running.values()):
            self._end(one, _ended(one, "cancelled") if in_order else self._gone())

    def _tokens_per_second(self) -> float:
        """New tokens, over the last ten seconds."""
        begin = time.monotonic() - RATE_SECONDS
        while self._came and self._came[0][0] < begin:
            self._came.popleft()
        return sum(tokens for _, tokens in self._came) / RATE_SECONDS


def _ended(sequence: ServedSequence, finish: Finish) -> Ended:
    return Ended(finish, len(sequence.prompt), len(sequence.tokens), sequence.cached)


def call(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *given: object) -> None:
    """Have something done in a loop, from any thread; nothing happens if it is closed."""
    try:
        loop.call_soon_threadsafe(work, *given)
    except RuntimeError:  # closed: nobody listens any more
        return
