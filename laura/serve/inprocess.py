"""The engine that computes in this process: one thread, fed from the event loop.

The loop's side (`InProcess`) takes asks in, refuses what cannot be meant and hands events
on. The thread's side (`engine_room.py`) owns the model and all its memory; nobody else
touches them. What both know stands in `FairQueue`, behind one lock that is never held while
anything is computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from laura.models.encoding import Encoder
from laura.results.errors import AdapterError
from laura.serve.ask_checks import check_ask, check_rank
from laura.serve.engines import AdapterFiles, Ask, EngineError, EngineState, Event
from laura.serve.fairness import FairQueue, QueueFull
from laura.serve.tickets import GONE, Events, Ticket

if TYPE_CHECKING:
    from laura.engine.live import LiveEngine
    from laura.serve.engine_room import EngineRoom
    from laura.serve.loading import Read

MOST_WAITING, MOST_WAITING_PER_TENANT = 512, 256
RETRY_SECONDS = 5.0


class InProcess:
    """A `ServingEngine` in this process.

    Args:
        make: Makes the live engine; called in its thread.
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
        make: Callable[[], LiveEngine],
        tokenizer: Any,
        config: Any,
        fingerprint: str,
        read: Read,
        *,
        max_rank: int,
        most_waiting: int = MOST_WAITING,
        most_waiting_per_tenant: int = MOST_WAITING_PER_TENANT,
    ) -> None:
        from laura.serve.engine_room import EngineRoom

        self.tokenizer, self.fingerprint, self.max_rank = tokenizer, fingerprint, max_rank
        self.context_tokens = Encoder(tokenizer, config).context_tokens
        self.vocabulary = int(config.vocab_size)
        queue: FairQueue[Ticket] = FairQueue(most_waiting, most_waiting_per_tenant)
        self._read = read
        self._room: EngineRoom = EngineRoom(make, queue, read)

    async def start(self) -> None:
        """Make ready to answer; returns when it is.

        Raises:
            LauraError: the engine cannot be made.
        """
        self._room.start()
        await asyncio.to_thread(self._room.made.wait)
        if self._room.failed is not None:
            raise self._room.failed

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""
        self._room.stop(grace_seconds)
        await asyncio.to_thread(self._room.join)

    def submit(self, ask: Ask, adapter: AdapterFiles | None) -> AsyncIterator[Event]:
        """Take an ask in; see `ServingEngine.submit`."""
        if not self._room.takes:
            raise EngineError(GONE, "gone", RETRY_SECONDS)
        self._check(ask, adapter)
        ticket = Ticket(ask, adapter, asyncio.get_running_loop())
        try:
            self._room.put(ticket)
        except QueueFull as full:
            raise EngineError(
                str(full),
                "full",
                self._room.seconds_until_room(full.tenants_own),
            ) from None
        return Events(ticket.events, lambda: self._room.cancel(ticket))

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """Bring an adapter into memory now; see `ServingEngine.load`."""
        check_rank(adapter, self.max_rank)
        try:
            read = await asyncio.to_thread(self._read, adapter)
            await self._order(lambda: self._room.place(adapter, read, pin))
        except AdapterError as error:
            raise EngineError(str(error), "adapter") from error

    async def unload(self, name: str) -> bool:
        """Free an adapter's place when no sequence uses it; whether it had one."""
        return bool(await self._order(lambda: self._room.remove(name)))

    def state(self) -> EngineState:
        """What it is doing; costs nothing."""
        return self._room.state()

    async def _order(self, work: Callable[[], object]) -> object:
        answer = self._room.order(work, asyncio.get_running_loop())
        if answer is None:
            raise EngineError(GONE, "gone", RETRY_SECONDS)
        return await answer

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
        if not self._room.can_ever_take(len(ask.prompt) + ask.max_new_tokens):
            raise EngineError(
                "prompt and answer are longer than this server has memory for", "request"
            )


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
        drafts: Whether answers are drafted ahead (models/drafts.py).
        most_waiting: Most asks that wait.
        most_waiting_per_tenant: Most of one tenant.

    Raises:
        ModelError: the base cannot be used.
        HubError: it cannot be downloaded.
        UsageError: there is no such device.
    """
    from laura.engine.live import LiveEngine
    from laura.models.device import cache_budget, keep_freed_memory, resolve_precision
    from laura.models.load import load_base
    from laura.serve.library import read_checked

    keep_freed_memory()
    base = load_base(model, revision=revision, device=device)
    place = base.model.device
    arithmetic = resolve_precision(precision, place)

    def make() -> LiveEngine:
        return LiveEngine(
            base.model,
            base.tokenizer,
            precision=arithmetic,
            slots=slots,
            max_rank=max_rank,
            cache_bytes=cache_bytes or cache_budget(place),
            drafts=drafts,
        )

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
