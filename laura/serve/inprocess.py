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

from laura.errors import AdapterError, UsageError
from laura.models.encoding import Encoder
from laura.serve.engines import AdapterFiles, Ask, Ended, EngineError, EngineState, Event
from laura.serve.fairness import FairQueue, QueueFull
from laura.serve.tickets import Ticket

if TYPE_CHECKING:
    from laura.models.live import LiveEngine
    from laura.serve.engine_room import EngineRoom
    from laura.serve.loading import Adapter, Read

MOST_WAITING, MOST_WAITING_PER_TENANT = 512, 256
RETRY_SECONDS = 5.0
GONE = "the engine has stopped; try again in a moment"


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
            whose = "your requests" if full.tenants_own else "requests"
            raise EngineError(
                f"too many {whose} wait already; try again later",
                "full",
                self._room.seconds_until_room(full.tenants_own),
            ) from None
        return _Events(ticket, self._room)

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """Bring an adapter into memory now; see `ServingEngine.load`."""
        self._check_rank(adapter)
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
        from laura.models.sampling import check_settings

        if (ask.adapter is None) != (adapter is None):
            raise ValueError("an ask names an adapter exactly where its files are given")
        if adapter is not None:
            self._check_rank(adapter)
        try:
            check_settings(ask)
        except UsageError as error:
            raise EngineError(str(error), "request") from error
        least = 0 if ask.prompt_logprobs else 1
        most = self.context_tokens - len(ask.prompt)
        faults = []
        if not ask.prompt:
            faults.append("the prompt is empty")
        elif not 0 <= min(ask.prompt) <= max(ask.prompt) < self.vocabulary:
            faults.append(f"token ids must be 0 to {self.vocabulary - 1}")
        if not least <= ask.max_new_tokens <= most:
            faults.append(
                f"{ask.max_new_tokens} new tokens were asked for after a prompt of "
                f"{len(ask.prompt)}; the context has {self.context_tokens} tokens, so allowed "
                f"are {least} to {most}"
            )
        if not 0 <= (ask.top_logprobs or 0) <= self.vocabulary:
            faults.append(f"top_logprobs must be 0 to {self.vocabulary}")
        if ask.priority <= 0:
            faults.append("the priority must be above 0")
        if not faults and not self._room.can_ever_take(len(ask.prompt) + ask.max_new_tokens):
            faults.append("prompt and answer are longer than this server has memory for")
        if faults:
            raise EngineError("; ".join(faults), "request")

    def _check_rank(self, adapter: AdapterFiles) -> None:
        if adapter.rank > self.max_rank:
            raise EngineError(
                f"adapter {adapter.name} has rank {adapter.rank}; this server takes at most "
                f"{self.max_rank}",
                "adapter",
            )


class _Events(AsyncIterator[Event]):
    """The events of one ticket; closing it, or losing it, cancels the ticket."""

    def __init__(self, ticket: Ticket, room: EngineRoom) -> None:
        self._ticket, self._room, self._done = ticket, room, False

    async def __anext__(self) -> Event:
        if self._done:
            raise StopAsyncIteration
        try:
            event = await self._ticket.events.get()
        except BaseException:
            self._cancel()
            raise
        if isinstance(event, EngineError):
            self._done = True
            raise event
        self._done = isinstance(event, Ended)
        return event

    async def aclose(self) -> None:
        """Cancel the ask, unless it has ended."""
        self._cancel()

    def __del__(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if not self._done:
            self._done = True
            self._room.cancel(self._ticket)


def open_inprocess(
    model: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    precision: str = "auto",
    slots: int = 16,
    max_rank: int = 64,
    cache_bytes: int | None = None,
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
        most_waiting: Most asks that wait.
        most_waiting_per_tenant: Most of one tenant.

    Raises:
        ModelError: the base cannot be used.
        HubError: it cannot be downloaded.
        UsageError: there is no such device.
    """
    from laura.models.device import cache_budget, resolve_precision
    from laura.models.live import LiveEngine
    from laura.models.load import load_base

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
        )

    return InProcess(
        make,
        base.tokenizer,
        base.model.config,
        base.fingerprint,
        _read_adapter,
        max_rank=max_rank,
        most_waiting=most_waiting,
        most_waiting_per_tenant=most_waiting_per_tenant,
    )


def _read_adapter(files: AdapterFiles) -> Adapter:
    from laura.models.adapters import _read

    return _read(files.folder)
