"""Several engines behind one gate, as one `ServingEngine`: keys, limits and isolation stay single.

    gate (tenants, texts, limits) -> pool -> wire -> headless engine (`headless.py`), many of them

A sequence goes to the engine that its tenant and adapter always go to (rendezvous hashing, so
that the prefix cache and the LoRA slot are there already, and an engine that comes or goes moves
its own share alone), unless that one has clearly more to do than another. Nothing waits here:
each engine has its own queue, which is fair among the tenants that ask it.

Where an engine dies, is stopped or is full, sequences of which nothing has been told go on to
another engine; one that has begun to answer ends with an error. A sequence that was in work when
two engines died may have been the reason, and is not given to a third.

Everything runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from laura import __version__
from laura.engine.detokenizer import Score, TextDelta
from laura.models.encoding import Encoder
from laura.models.load import check_model_folder, describe_model, fingerprint
from laura.results.errors import ModelError
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    EngineState,
    Event,
    PromptScores,
    SequenceRequest,
    Tell,
)
from laura.serve.settings import EngineSettings
from laura.serve.traces import traceparent
from laura.serve.wire import (
    OF_ENGINE,
    PATH,
    POLL_SECONDS,
    SILENCE_SECONDS,
    UPGRADE,
    AdapterMark,
    Ask,
    Cancel,
    Done,
    Failure,
    Hello,
    Load,
    Poll,
    Report,
    SequenceEvent,
    Unload,
    Wire,
    address_of,
)

LOG = logging.getLogger(__name__)
CONNECT_SECONDS, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 5.0, 0.5, 15.0
# At the start engines are waited for so long, except where waiting cannot help.
START_SECONDS = 120.0
# An engine is clearly busier with twice the tokens of another one and so many more.
BUSIER_TOKENS = 4096
MOST_LOSSES = 2
RETRY_SECONDS = 5.0
STATUS_WORDS = {
    "401": "it refuses the key of --engine-key-file",
    "503": "it is not ready",
}


@dataclass(eq=False)
class _Pooled:
    """A sequence at an engine.

    Attributes:
        begun: Whether the engine has it in work.
        told: Whether something of its answer has been told.
        pieces: Pieces of text that have been told.
        losses: Engines that have died, or failed, with it in work.
        refused: Engines that could not take it.
    """

    request: SequenceRequest
    adapter: AdapterMark | None
    tell: Tell
    traceparent: str | None
    at: Backend | None = None
    begun: bool = False
    told: bool = False
    pieces: int = 0
    losses: int = 0
    refused: set[Backend] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """Most tokens that it may cost."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def fits(self, event: Event, vocabulary: int) -> bool:
        """Whether an event can be one of this sequence's: what it says will be counted."""
        prompt, most = len(self.request.prompt), max(1, self.request.max_new_tokens)
        if isinstance(event, Ended):
            counts = (event.new_tokens, most), (event.cached_tokens, prompt)
            return all(0 <= count <= limit for count, limit in counts)
        if isinstance(event, PromptScores) and (self.told or len(event.scores) != prompt):
            return False
        return self.pieces <= most and all(_known(one, vocabulary) for one in event.scores)


def _known(score: Score, vocabulary: int) -> bool:
    token, _, likeliest = score
    return all(0 <= one < vocabulary for one in (token, *(other for other, _ in likeliest)))


class EnginePool:
    """A `ServingEngine` of others. It reads the base's tokenizer, and its weights for their hash.

    Args:
        folder: The model's folder, as `resolve_model` finds it; the engines' own base must be
            the same.
        settings: Of the engine: `backends` and `key` count.
        start_seconds: So long engines are waited for at the start.

    Raises:
        ModelError: the folder is no usable model.
        UsageError: a backend is no address.
    """

    def __init__(
        self, folder: Path, settings: EngineSettings, *, start_seconds: float = START_SECONDS
    ) -> None:
        check_model_folder(folder)
        config, self.tokenizer = describe_model(folder)
        self.context_tokens = Encoder(self.tokenizer, config).context_tokens
        self.vocabulary, self.fingerprint = int(config.vocab_size), fingerprint(folder)
        self._backends = [Backend(one, settings.key, self) for one in settings.backends]
        self._start_seconds = start_seconds
        # What the engines have in common; None before the first one.
        self._context: int | None = None
        self._keeping: list[asyncio.Task[None]] = []
        self._pinned: dict[str, AdapterMark] = {}
        self._started = self._stopping = False

    async def start(self) -> None:
        """Find the engines; returns when one is ready and all others have been asked.

        Raises:
            ModelError: none can be used.
        """
        self._keeping = [asyncio.create_task(one.keep()) for one in self._backends]
        end = time.monotonic() + self._start_seconds
        while not (self._ready() and all(one.asked for one in self._backends)):
            late = time.monotonic() > end
            if all(one.useless or (late and not one.ready) for one in self._backends):
                await self.stop(0)
                lines = "".join(f"\n  {one.address}: {one.why}" for one in self._backends)
                raise ModelError(f"no engine of --backend can be used:{lines}")
            await asyncio.sleep(0.02)
        self._started = True

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, let running answers end within the time, cancel the rest."""
        self._stopping, end = True, time.monotonic() + grace_seconds
        while any(one.sequences for one in self._backends) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for backend in self._backends:
            for one in list(backend.sequences.values()):
                backend.drop(one, cancel=True)
                one.tell(self._cancelled(one))
        await asyncio.sleep(0)  # what was said last is written by now
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)

    def submit(
        self, request: SequenceRequest, adapter: AdapterFiles | None, tell: Tell
    ) -> Callable[[], None]:
        """See `ServingEngine.submit`; what an engine says against it is told as an event."""
        mark = None if adapter is None else AdapterMark.of(adapter)
        one = _Pooled(request, mark, tell, traceparent())
        backend = None if self._stopping else self._choose(one)
        if backend is None:
            raise self._gone()
        backend.ask(one)
        return partial(self._cancel, one)

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """Bring an adapter into the memory of every engine; see `ServingEngine.load`."""
        mark = AdapterMark.of(adapter)
        self._pinned.pop(mark.name, None)
        await self._on_all(lambda number: Load(number=number, adapter=mark, pin=pin))
        if pin:
            self._pinned[mark.name] = mark

    async def unload(self, name: str) -> bool:
        """Free an adapter's slot in every engine; see `ServingEngine.unload`."""
        self._pinned.pop(name, None)
        done = await self._on_all(lambda number: Unload(number=number, name=name))
        return any(one.unloaded for one in done)

    def state(self) -> EngineState:
        """The engines' states as one, no more than a second or so old."""
        states = {one.address: one.told_state() for one in self._backends}
        every, ready = states.values(), sum(state.ready for state in states.values())
        return EngineState(
            ready=ready > 0 and self._started and not self._stopping,
            why_not="" if ready == len(states) else f"{ready} of {len(states)} engines answer",
            slots=tuple(slot for state in every for slot in state.slots),
            slots_total=sum(state.slots_total for state in every),
            running=_sum(state.running for state in every),
            waiting=_sum(state.waiting for state in every),
            tokens_per_second=sum(state.tokens_per_second for state in every),
            memory_bytes=_sum(state.memory_bytes for state in every),
            cache_tokens=sum(state.cache_tokens for state in every),
            drafted_tokens=sum(state.drafted_tokens for state in every),
            accepted_tokens=sum(state.accepted_tokens for state in every),
            engines=states,
        )

    # What the backends ask and tell.

    def misfit(self, hello: Hello) -> str:
        """Why an engine cannot be one of these; empty where it can."""
        context = self.context_tokens if self._context is None else self._context
        if hello.version != __version__:
            return f"it is Laura {hello.version}, and this is {__version__}; start the same one"
        if hello.fingerprint != self.fingerprint:
            return "it serves another base: the hash of its weights is not that of this one's"
        if hello.context_tokens > context or hello.context_tokens < (self._context or 1):
            return f"its context has {hello.context_tokens} tokens, and this one's {context}"
        self._context = self.context_tokens = hello.context_tokens
        return ""

    def pinned(self) -> list[AdapterMark]:
        """What an engine that has come shall hold."""
        return list(self._pinned.values())

    def lost(self, sequences: Iterable[_Pooled]) -> None:
        """The engine of these has died."""
        for one in sequences:
            one.at = None
            one.losses += one.begun
            self._elsewhere(one, self._gone())

    def take_in(self, one: _Pooled, event: Begun | Event | Failure) -> None:
        """What an engine says of a sequence."""
        assert one.at is not None
        if isinstance(event, Begun):
            one.begun = True
        elif isinstance(event, Failure):
            one.refused.add(one.at)
            one.losses += one.begun
            one.at.drop(one)
            if event.kind in ("full", "gone"):
                self._elsewhere(one, event.error())
            else:
                one.tell(event.error())
        elif isinstance(event, Ended):
            one.at.drop(one)
            if event.finish == "cancelled":  # the engine was stopped before it was done
                self._elsewhere(one, event)
            else:
                one.tell(event)
        else:
            one.begun = one.told = True
            one.pieces += isinstance(event, TextDelta)
            one.tell(event)

    def _elsewhere(self, one: _Pooled, told: EngineError | Ended) -> None:
        """Give a sequence to another engine if it has not begun to answer, else end it."""
        one.begun = False
        tried = one.told or one.losses >= MOST_LOSSES or self._stopping
        backend = None if tried else self._choose(one)
        if backend is None:
            one.tell(told)
        else:
            backend.ask(one)

    def _choose(self, one: _Pooled) -> Backend | None:
        """The engine for a sequence; None where there is none."""
        free = [backend for backend in self._ready() if backend not in one.refused]
        if not free:
            return None
        key = f"{one.request.tenant}\n{one.request.adapter or ''}"
        preferred = max(free, key=lambda backend: backend.weight(key))
        least = min(free, key=lambda backend: backend.tokens)
        busier = preferred.tokens > 2 * least.tokens + BUSIER_TOKENS
        return least if busier else preferred

    def _cancel(self, one: _Pooled) -> None:
        """Forget a sequence; what was computed of it is told, as far as it is known."""
        if one.at is not None:
            one.at.drop(one, cancel=True)
            if one.begun:
                one.tell(self._cancelled(one))

    def _cancelled(self, one: _Pooled) -> Ended:
        return Ended("cancelled", len(one.request.prompt), one.pieces)

    def _ready(self) -> list[Backend]:
        return [one for one in self._backends if one.ready]

    def _gone(self) -> EngineError:
        words = "the server is stopping" if self._stopping else "the engine has stopped"
        return EngineError(f"{words}; try again in a moment", "gone", RETRY_SECONDS)

    async def _on_all(self, order: Callable[[int], Load | Unload]) -> list[Done]:
        """Have every engine carry out an order.

        Raises:
            EngineError: of the first one that cannot; the others have done it.
        """
        ready = self._ready()
        if not ready or self._stopping:
            raise self._gone()
        done = await asyncio.gather(*(one.carry_out(order) for one in ready))
        for one in done:
            if one.failure is not None:
                raise one.failure.error()
        return done


class Backend:
    """An engine behind a pool, and the connection to it, which is made anew whenever it is gone.

    Args:
        address: Its URL.
        key: That it wants.
        pool: Whose it is.

    Attributes:
        sequences: What it was asked and has not ended.
        tokens: Most tokens that these may cost.
        asked: Whether it was tried once.
        useless: Whether trying again cannot help before somebody has mended something.
        why: Why it is not there, where it is not.
    """

    def __init__(self, address: str, key: str, pool: EnginePool) -> None:
        self.address, self._key, self._pool = address, key, pool
        self._place = address_of(address)
        self.sequences: dict[str, _Pooled] = {}
        self.tokens, self.asked, self.useless = 0, False, False
        self.why = "it has not been asked"
        self._state = EngineState(False)
        self._wire: EngineWire | None = None
        self._orders: dict[int, asyncio.Future[Done]] = {}
        self._numbers = itertools.count()

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self._wire is not None and self._state.ready

    def told_state(self) -> EngineState:
        """What it said last that it is doing."""
        return self._state if self._wire is not None else EngineState(False, self.why)

    def weight(self, key: str) -> bytes:
        """Rendezvous hashing: of all engines the one with the highest weight has a key."""
        return hashlib.blake2b(f"{self.address}\n{key}".encode(), digest_size=8).digest()

    def ask(self, one: _Pooled) -> None:
        """Give it a sequence; it must be ready."""
        assert self._wire is not None
        one.at, self.sequences[one.request.id] = self, one
        self.tokens += one.tokens
        asked = Ask(request=one.request, adapter=one.adapter, traceparent=one.traceparent)
        self._wire.say(asked)

    def drop(self, one: _Pooled, cancel: bool = False) -> None:
        """It has ended a sequence, or shall."""
        del self.sequences[one.request.id]
        self.tokens -= one.tokens
        one.at = None
        if cancel and self._wire is not None:
            self._wire.say(Cancel(id=one.request.id))

    async def carry_out(self, order: Callable[[int], Load | Unload]) -> Done:
        """Have an order carried out; it must be ready."""
        assert self._wire is not None
        number = next(self._numbers)
        done: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._orders[number] = done
        self._wire.say(order(number))
        return await done

    async def keep(self) -> None:
        """Connect, ask how it is while it lives, and connect anew after a pause that grows."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    wire = await self._connect()
                except (OSError, UnicodeError) as error:  # UnicodeError: of an impossible name
                    self._missing(str(error) or "it does not answer")
                else:
                    pause = FIRST_PAUSE_SECONDS
                    self._found()
                    while self._wire is wire:
                        await asyncio.sleep(POLL_SECONDS)
                        if time.monotonic() - wire.heard > SILENCE_SECONDS:
                            wire.end(f"it has said nothing for {SILENCE_SECONDS:g} seconds")
                        wire.say(Poll())
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
        finally:
            if self._wire is not None:
                self._wire.transport.close()

    def hear(self, wire: EngineWire, message: Hello | SequenceEvent | Report | Done) -> None:
        """Take in what it says."""
        if isinstance(message, Hello):
            if why := self._pool.misfit(message):
                wire.useless = True
                wire.end(why)
        elif isinstance(message, Report):
            self._state = message.state
            wire.greet()
        elif isinstance(message, Done):
            if (order := self._orders.pop(message.number, None)) is not None:
                order.set_result(message)
            elif message.failure is not None:
                LOG.warning("engine %s: %s", self.address, message.failure.message)
        elif (one := self.sequences.get(message.id)) is not None:
            event = message.event()
            if event is None or not (
                isinstance(event, Begun | Failure) or one.fits(event, self._pool.vocabulary)
            ):
                wire.end("it answers what was not asked")
            else:
                self._pool.take_in(one, event)

    def gone(self, wire: EngineWire) -> None:
        """The connection has ended: what was asked over it goes elsewhere."""
        if self._wire is not wire:
            return
        self._wire, sequences, orders = None, list(self.sequences.values()), self._orders
        self.sequences, self._orders, self.tokens = {}, {}, 0
        self._missing(wire.why or "it has closed the connection")
        for order in orders.values():
            failure = Failure(message="the engine has stopped", kind="gone", retry_after=1.0)
            order.set_result(Done(number=0, failure=failure))
        self._pool.lost(sequences)

    async def _connect(self) -> EngineWire:
        """A connection over which the engine has told what it is and what it is doing.

        Raises:
            OSError: there is no engine, or not one for this pool.
            TimeoutError: it does not say so in time.
        """
        loop, wire = asyncio.get_running_loop(), EngineWire(self, self._key)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(lambda: wire, *self._place)
                try:
                    await wire.greeted
                except BaseException:
                    wire.end("")
                    raise
        finally:
            self.useless = wire.useless
        self._wire = wire
        return wire

    def _found(self) -> None:
        assert self._wire is not None
        LOG.warning("engine %s answers", self.address)
        self.asked, self.why = True, ""
        for mark in self._pool.pinned():
            self._wire.say(Load(number=next(self._numbers), adapter=mark, pin=True))

    def _missing(self, why: str) -> None:
        if why != self.why:
            LOG.warning("engine %s: %s", self.address, why)
        self.asked, self.why = True, why


class EngineWire(Wire):
    """The gate's end of a connection to an engine.

    Attributes:
        greeted: Done when the engine has said what it is and what it is doing.
        useless: Whether it cannot be used as it is.
    """

    def __init__(self, backend: Backend, key: str) -> None:
        super().__init__()
        self._backend, self._key, self.useless = backend, key, False
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def greet(self) -> None:
        """The engine has said what it is doing."""
        if not self.greeted.done():
            self.greeted.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the engine."""
        super().connection_made(transport)
        host = self._backend.address.removeprefix("http://").rstrip("/")
        headers = f"host: {host}\r\nconnection: upgrade\r\nupgrade: {UPGRADE}"
        key = f"authorization: Bearer {self._key}"
        self.transport.write(f"GET {PATH} HTTP/1.1\r\n{headers}\r\n{key}\r\n\r\n".encode())

    def connection_lost(self, error: Exception | None) -> None:
        """The engine has gone, or never was one."""
        if not self.greeted.done():
            self.greeted.set_exception(OSError(self.why or "it has closed the connection"))
        self._backend.gone(self)

    def head_received(self, head: list[str]) -> None:
        """Whether it is an engine that may be asked."""
        words = head[0].split() if head else []
        status = words[1] if len(words) > 1 else ""
        if status == "101":
            self.say(Poll())
            return
        self.useless = status == "401"
        self.end(STATUS_WORDS.get(status, "no engine of Laura's is there"))

    def line_received(self, line: bytes) -> None:
        """Hand a message on."""
        try:
            message = OF_ENGINE.validate_json(line)
        except ValidationError:
            self.end("it speaks another language")
        else:
            self._backend.hear(self, message)


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for one in counts:
        total.update(one)
    return dict(total)
