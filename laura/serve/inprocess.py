"""The engine that computes in this process: one thread computes, the event loop decides.

    queue -> (adapter read from disk -> slot) -> row -> steps -> events

The loop's thread owns the queue, who runs and all events; the engine's thread owns the model
and all its memory. One awaits the other: between two steps the loop admits who waits, in fair
order, and whatever else is to be done with the model (an adapter loaded, a sequence dropped)
stands in the thread's own queue. So nothing is locked, and nothing waits for longer than a step.

An ask whose adapter is not loaded yet lets others pass (see loading.py); one that has no row
yet does not, or a long one would wait for ever behind short ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from laura.models.encoding import Encoder
from laura.results.errors import AdapterError
from laura.serve.ask_checks import check_ask, check_rank
from laura.serve.engines import (
    AdapterFiles,
    Ask,
    Ended,
    EngineError,
    EngineState,
    Event,
    Finish,
    NewText,
    PromptScores,
    SlotState,
    TokenScore,
)
from laura.serve.fairness import FairQueue, QueueFull
from laura.serve.rates import TokenRate
from laura.serve.tickets import GONE, SequenceEvents, call

if TYPE_CHECKING:
    from laura.engine.detokenizer import Score
    from laura.engine.model_runner import FusedRunner
    from laura.engine.scheduler import Scheduler
    from laura.engine.sequence import StepOutput, TokenSequence
    from laura.serve.loading import Adapter, Loading, Read

MOST_WAITING, MOST_WAITING_PER_TENANT = 512, 256
RETRY_SECONDS = 5.0
NOT_READY = EngineState(False, "", (), 0, {}, {}, 0.0, {})
DIED = "it has died of a fault"

Result = TypeVar("Result")


@dataclass(eq=False)
class _Ticket:
    """An ask, its checked adapter, and the events that came for it."""

    ask: Ask
    adapter: AdapterFiles | None
    events: asyncio.Queue[Event | EngineError] = field(default_factory=asyncio.Queue)


class InProcess:
    """A `ServingEngine` in this process.

    Args:
        make: Makes the scheduler and its model; called in their thread.
        tokenizer: The base's tokenizer.
        config: The base's configuration.
        fingerprint: Hash of the base's weights.
        read: Reads an adapter's files, checked; called in a thread of its own.
        max_rank: Highest rank of an adapter.
        most_waiting: Most asks that wait.
        most_waiting_per_tenant: Most of one tenant.
    """

    def __init__(
        self,
        make: Callable[[], Scheduler[FusedRunner]],
        tokenizer: Any,
        config: Any,
        fingerprint: str,
        read: Read,
        *,
        max_rank: int,
        most_waiting: int = MOST_WAITING,
        most_waiting_per_tenant: int = MOST_WAITING_PER_TENANT,
    ) -> None:
        self.tokenizer, self.fingerprint, self.max_rank = tokenizer, fingerprint, max_rank
        self.context_tokens = Encoder(tokenizer, config).context_tokens
        self.vocabulary = int(config.vocab_size)
        self._make, self._read = make, read
        self._queue = FairQueue[_Ticket](most_waiting, most_waiting_per_tenant)
        self._running: dict[TokenSequence, _Ticket] = {}
        self._rate, self._state = TokenRate(), NOT_READY
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laura-engine")
        self._wake = asyncio.Event()
        self._takes, self._stop_at = False, float("inf")
        self._steps: asyncio.Task[None] | None = None
        # There from the start to the end.
        self._scheduler: Scheduler[FusedRunner] | None = None
        self._loading: Loading | None = None
        self._why_not = "it is starting"

    async def start(self) -> None:
        """Make ready to answer; returns when it is.

        Raises:
            LauraError: the engine cannot be made.
        """
        from laura.serve.loading import Loading

        loop = asyncio.get_running_loop()
        try:
            self._scheduler = await loop.run_in_executor(self._thread, self._make)
        except BaseException:
            self._why_not = DIED
            raise
        slots = self._scheduler.runner.slots
        self._loading = Loading(slots, self._read, lambda: call(loop, self._wake.set))
        self._publish()
        self._takes = True
        self._steps = asyncio.create_task(self._run())

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""
        self._takes, self._stop_at = False, time.monotonic() + grace_seconds
        self._wake.set()
        if self._steps is not None:
            await asyncio.wait([self._steps])
        await asyncio.to_thread(self._thread.shutdown)

    def submit(self, ask: Ask, adapter: AdapterFiles | None) -> AsyncIterator[Event]:
        """Take an ask in; see `ServingEngine.submit`."""
        if not self._takes:
            raise EngineError(GONE, "gone", RETRY_SECONDS)
        self._check(ask, adapter)
        ticket, loop = _Ticket(ask, adapter), asyncio.get_running_loop()
        cost = len(ask.prompt) + ask.max_new_tokens
        try:
            self._queue.put(ticket, ask.tenant, ask.priority, cost)
        except QueueFull as full:
            rate = self._rate.per_second()
            seconds = self._queue.seconds_until_room(rate, full.tenants_own)
            raise EngineError(str(full), "full", seconds) from None
        self._wake.set()
        # A reader that is lost may be so in any thread.
        return SequenceEvents(ticket.events, lambda: call(loop, self._cancel, ticket))

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """Bring an adapter into memory now; see `ServingEngine.load`."""
        check_rank(adapter, self.max_rank)
        try:
            read = await asyncio.to_thread(self._read, adapter)
            await self._between_steps(self._place, adapter, read, pin)
        except AdapterError as error:
            raise EngineError(str(error), "adapter") from error

    async def unload(self, name: str) -> bool:
        """Free an adapter's slot when no sequence uses it; whether it had one."""
        return await self._between_steps(lambda: self._used.runner.slots.remove(name))

    def state(self) -> EngineState:
        """What it is doing; costs nothing."""
        waiting = self._queue.waiting()
        if self._scheduler is None:
            return replace(NOT_READY, why_not=self._why_not, waiting=waiting)
        return replace(
            self._state,
            running=dict(Counter(ticket.ask.tenant for ticket in self._running.values())),
            waiting=waiting,
            tokens_per_second=self._rate.per_second(),
        )

    def _check(self, ask: Ask, adapter: AdapterFiles | None) -> None:
        """Refuse what cannot be meant, before it stands in the queue.

        Raises:
            EngineError: kind "request" or "adapter".
        """
        check_ask(
            ask,
            adapter,
            context_tokens=self.context_tokens,
            vocabulary=self.vocabulary,
            max_rank=self.max_rank,
        )
        cache = self._used.kv_cache
        if not cache.can_ever_hold(len(ask.prompt) + ask.max_new_tokens):
            raise EngineError(
                "prompt and answer are longer than this server has memory for", "request"
            )

    @property
    def _used(self) -> Scheduler[FusedRunner]:
        if self._scheduler is None:
            raise EngineError(GONE, "gone", RETRY_SECONDS)
        return self._scheduler

    async def _run(self) -> None:
        """Step until it is time to end, then free everything."""
        died = False
        try:
            while await self._turn():
                pass
        except Exception as error:
            died = True
            logging.getLogger(__name__).error("the engine has died", exc_info=error)
        finally:
            self._close(died)

    async def _turn(self) -> bool:
        """Admit who may begin, and one step; False when it is time to end."""
        scheduler = self._used
        if not scheduler.busy:
            await self._wake.wait()
        self._wake.clear()
        if self._takes:
            await self._admit()
        elif not scheduler.busy or time.monotonic() >= self._stop_at:
            return False
        self._take_in(await self._do(scheduler.step))
        return True

    async def _admit(self) -> None:
        """Begin what waits, in fair order, as far as there is room."""
        while self._takes and (waiting := list(self._queue.in_order())):
            found = await self._do(self._add_first, waiting)
            if found is None:
                return
            ticket, sequence = found
            there = self._queue.remove(ticket, ticket.ask.tenant)
            if isinstance(sequence, EngineError):
                ticket.events.put_nowait(sequence)
            elif there:
                self._queue.charge(ticket.ask.tenant, len(sequence.prompt))
                self._running[sequence] = ticket
            else:  # it was given up meanwhile
                await self._do(self._used.drop, sequence)

    def _take_in(self, outputs: Sequence[StepOutput]) -> None:
        """What a step brought, as events."""
        for output in outputs:
            sequence, ticket = output.sequence, self._running.get(output.sequence)
            if ticket is None:  # it was given up meanwhile
                continue
            tell, text = ticket.events.put_nowait, output.delta
            self._queue.charge(ticket.ask.tenant, 1)
            if output.prompt:
                tell(PromptScores(_scores(output.prompt)))
            if text.text or text.scores:
                tell(NewText(text.text, _scores(text.scores)))
            if output.finish:
                finish: Finish = "length" if output.finish == "length" else "stop"
                tell(Ended(finish, *_counts(sequence)))
            if output.fault:
                what = f"the answer broke off: {output.fault}"
                tell(EngineError(what, "adapter" if sequence.slot else "request"))
            if output.finish or output.fault:
                del self._running[sequence]
                # A place is free again: who waits for it is looked at, also where nobody runs.
                self._wake.set()
        if outputs:
            self._rate.add(len(outputs))

    def _cancel(self, ticket: _Ticket) -> None:
        """Forget a ticket, waiting or in work."""
        if self._queue.remove(ticket, ticket.ask.tenant):
            return
        for sequence, own in self._running.items():
            if own is ticket:
                del self._running[sequence]
                self._thread.submit(self._then_publish, self._used.drop, sequence)
                self._wake.set()
                return

    def _close(self, died: bool) -> None:
        """Tell everybody that there is nothing more, and free what was held."""
        self._takes, self._why_not = False, DIED if died else "it has stopped"
        gone = list(self._queue.in_order())
        for ticket in gone:
            self._queue.remove(ticket, ticket.ask.tenant)
        for sequence, ticket in self._running.items():
            if died:
                gone.append(ticket)
            else:
                ticket.events.put_nowait(Ended("cancelled", *_counts(sequence)))
        for ticket in gone:
            ticket.events.put_nowait(EngineError(GONE, "gone"))
        if self._loading is not None:
            self._loading.close()
        self._running, self._scheduler, self._loading = {}, None, None
        self._thread.shutdown(wait=False)

    async def _between_steps(self, work: Callable[..., Result], *given: object) -> Result:
        """Have the engine's thread do something; who waits is looked at afterwards.

        Raises:
            EngineError: the engine has stopped.
        """
        if not self._takes:
            raise EngineError(GONE, "gone", RETRY_SECONDS)
        try:
            return await self._do(work, *given)
        finally:
            self._wake.set()

    async def _do(self, work: Callable[..., Result], *given: object) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._then_publish, work, *given)

    # In the engine's thread from here on.

    def _then_publish(self, work: Callable[..., Result], *given: object) -> Result:
        """Do something; who asks for the state next finds it done."""
        try:
            return work(*given)
        finally:
            self._publish()

    def _publish(self) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        runner = scheduler.runner
        held = tuple(
            SlotState(slot.name, slot.pinned, slot.uses, slot.bytes)
            for slot in runner.slots.held.values()
        )
        memory = {
            "weights": runner.weight_bytes,
            "adapters": runner.slots.bytes,
            "cache": scheduler.kv_cache.bytes + scheduler.prefix_cache.bytes,
        }
        self._state = EngineState(
            True, "", held, runner.slots.most, {}, {}, 0.0, memory,
            scheduler.kv_cache.tokens, scheduler.drafted_tokens, scheduler.accepted_tokens,
        )  # fmt: skip

    def _place(self, files: AdapterFiles, adapter: Adapter, pin: bool) -> None:
        """Bring an adapter into a slot, and keep it there if `pin`."""
        slots = self._used.runner.slots
        slot = slots.find(files.name, files.digest)
        slot = slot or slots.place(files.name, files.digest, *adapter)
        slot.pinned = pin

    def _add_first(
        self, waiting: Sequence[_Ticket]
    ) -> tuple[_Ticket, TokenSequence | EngineError] | None:
        """Begin the first that can; it, or what is wrong with it, or None where nobody can."""
        from laura.engine.sampler import draw_of
        from laura.engine.sequence import TokenSequence
        from laura.serve.loading import NotYet

        loading = self._loading
        assert loading is not None
        loading.look_anew(ticket.adapter for ticket in waiting)
        for ticket in waiting:
            ask = ticket.ask
            try:
                slot = None if ticket.adapter is None else loading.slot(ticket.adapter)
            except NotYet:
                continue
            except AdapterError as error:
                return ticket, EngineError(str(error), "adapter")
            sequence = TokenSequence(
                ask.tenant,
                ask.prompt,
                ask.max_new_tokens,
                slot,
                draw_of(ask),
                ask.stop,
                ask.top_logprobs,
                ask.prompt_logprobs,
                ask.ignore_end,
            )
            return (ticket, sequence) if self._used.add(sequence) else None
        return None


def _scores(scores: Sequence[Score]) -> tuple[TokenScore, ...]:
    return tuple(TokenScore(*score) for score in scores)


def _counts(sequence: TokenSequence) -> tuple[int, int, int]:
    return len(sequence.prompt), len(sequence.tokens), sequence.cached


def open_inprocess(
    model: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    precision: str = "auto",
    slots: int = 16,
    max_rank: int = 64,
    cache_bytes: int | None = None,
    drafts: bool = True,
    most_waiting: int = MOST_WAITING,
    most_waiting_per_tenant: int = MOST_WAITING_PER_TENANT,
) -> InProcess:
    """Load a base and make an engine of it, which is to be started.

    Args:
        model: As for `models.load.load_base`.
        revision: Likewise.
        device: Likewise.
        precision: "fp32", "bf16" or "auto".
        slots: Most adapters in memory at the same time.
        max_rank: Highest rank of an adapter.
        cache_bytes: Memory for keys and values; None for a share of what the device has.
        drafts: Whether answers are drafted ahead (engine/drafting.py).
        most_waiting: Most asks that wait.
        most_waiting_per_tenant: Most of one tenant.

    Raises:
        ModelError: the base cannot be used.
        HubError: it cannot be downloaded.
        UsageError: there is no such device.
    """
    from laura.engine.model_runner import FusedRunner
    from laura.engine.scheduler import Scheduler
    from laura.models.device import cache_budget, keep_freed_memory, resolve_precision
    from laura.models.load import load_base
    from laura.serve.library import read_checked

    keep_freed_memory()
    base = load_base(model, revision=revision, device=device)
    place = base.model.device
    arithmetic = resolve_precision(precision, place)

    def make() -> Scheduler[FusedRunner]:
        runner = FusedRunner(base.model, arithmetic, slots, max_rank)
        memory = cache_bytes or cache_budget(place)
        return Scheduler(runner, base.tokenizer, cache_bytes=memory, drafts=drafts)

    return InProcess(
        make,
        base.tokenizer,
        base.model.config,
        base.fingerprint,
        read_checked,
        max_rank=max_rank,
        most_waiting=most_waiting,
        most_waiting_per_tenant=most_waiting_per_tenant,
    )
