"""Sequences before and in vLLM: who waits, who runs, and who begins next."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from laura.serve.engines import EngineError
from laura.serve.fairness import FairQueue, QueueFull
from laura.serve.rates import TokenRate
from laura.serve.turns import Turns
from laura.serve.vllm_job import Job
from laura.serve.vllm_places import Places, all_pinned

TURN_SECONDS = 2.0
# So long an adapter waits for a place before no other one gets one.
PLACE_SECONDS = 5.0


class Crowd:
    """Everybody who wants an answer.

    Args:
        most_running: Most sequences in work.
        most_waiting: Most that wait for that.
        most_waiting_per_tenant: Most of one tenant.

    Attributes:
        running: Those in work.
    """

    def __init__(self, most_running: int, most_waiting: int, most_waiting_per_tenant: int) -> None:
        self._most_running = most_running
        self._queue = FairQueue[Job](most_waiting, most_waiting_per_tenant)
        self._turns = Turns(TURN_SECONDS, time.monotonic)
        self._rate = TokenRate()
        self.running: set[Job] = set()

    def put(self, job: Job) -> None:
        """Let a sequence wait.

        Raises:
            EngineError: too many wait already.
        """
        ask = job.ask
        try:
            self._queue.put(job, ask.tenant, ask.priority, len(ask.prompt) + ask.max_new_tokens)
        except QueueFull as full:
            raise EngineError(
                str(full),
                "full",
                self._queue.seconds_until_room(self.tokens_per_second(), full.tenants_own),
            ) from None

    def remove(self, job: Job) -> bool:
        """Take out one that does not want to wait any more; whether it waited."""
        return self._queue.remove(job, job.ask.tenant)

    def begin(self, places: Places, start: Callable[[Job], None]) -> None:
        """Let everybody begin who may."""
        while len(self.running) < self._most_running:
            job = self._next(places)
            if job is None:
                return
            self._queue.remove(job, job.ask.tenant)
            self._queue.charge(job.ask.tenant, len(job.ask.prompt))
            self._turns.enter(job.group)
            self.running.add(job)
            start(job)

    def leave(self, job: Job) -> None:
        """A sequence does not run any more."""
        self.running.discard(job)
        self._turns.leave()

    def count(self, job: Job, tokens: int) -> None:
        """A sequence has got new tokens."""
        self._queue.charge(job.ask.tenant, tokens)
        self._rate.add(tokens)

    def send_away(self, error: EngineError) -> None:
        """Nobody waits any more."""
        for job in list(self._queue.in_order()):
            self.remove(job)
            job.tell(error)

    def tokens_per_second(self) -> float:
        """New tokens over the last ten seconds."""
        return self._rate.per_second()

    def waiting(self) -> dict[str, int]:
        """How many wait, by tenant."""
        return self._queue.waiting()

    def working(self) -> dict[str, int]:
        """How many run, by tenant."""
        return dict(Counter(job.ask.tenant for job in self.running))

    def _next(self, places: Places) -> Job | None:
        """Who begins next: of those whose group has its turn and whose adapter a place."""
        now, ready, blocked = time.monotonic(), list[Job](), list[Job]()
        for job in list(self._queue.in_order()):
            if job.adapter is None or places.has_room(job.adapter):
                ready.append(job)
            elif places.never_room(job.adapter):
                self.remove(job)
                job.tell(all_pinned())
            else:
                job.blocked_since = job.blocked_since or now
                blocked.append(job)
        groups = {job.group for job in ready}
        # Who has waited long for a place gets the next one that nobody uses.
        waited = [job for job in [*ready, *blocked] if job.blocked_since]
        first = min(waited, key=lambda job: job.blocked_since, default=None)
        late = first is not None and now - first.blocked_since >= PLACE_SECONDS
        for job in ready:
            if late and job.adapter is not None and job is not first:
                continue
            if self._turns.may_enter(job.group, bool(groups - {job.group})):
                return job
        return None
