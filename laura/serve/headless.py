"""An engine without a front: a process that answers gates (`pool.py`), not clients.

It knows no tenants, limits or texts of requests; whoever has its key may ask everything of it.
Files of adapters it looks up by name in a folder of its own, and reads only those whose SHA-256
is the one that the gate has checked.

Beside `wire.py`'s path there are `/healthz` and `/readyz` on the same port, for probes.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from laura import __version__
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    EngineState,
    Event,
    ServingEngine,
)
from laura.serve.schemas import INT64
from laura.serve.traces import traced_sequence
from laura.serve.wire import (
    OF_GATE,
    PATH,
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
    headers_of,
)

LOG = logging.getLogger(__name__)
MOST_CONNECTIONS, HEAD_SECONDS = 256, 5.0
# What is written still has to reach the gates.
FLUSH_SECONDS = 5.0


class Headless:
    """What all gates of an engine have in common.

    Args:
        engine: Answers.
        adapters: Folder of their files, as the gates' own.
        key: Which gates show.

    Attributes:
        stopping: Whether nothing new is taken.
        wires: Open connections, the oldest first.
    """

    def __init__(self, engine: ServingEngine, adapters: Path | None, key: str) -> None:
        self.engine, self.stopping = engine, False
        self.wires: dict[GateWire, None] = {}
        self._adapters = adapters.resolve() if adapters else None
        self._key = f"Bearer {key}".encode()

    def wire(self) -> GateWire:
        """The protocol of a new connection."""
        return GateWire(self)

    def opens(self, authorization: str) -> bool:
        """Whether a header shows the key; the time that this takes says nothing about it."""
        return hmac.compare_digest(authorization.encode("latin-1"), self._key)

    def state(self) -> EngineState:
        """What the engine is doing."""
        state = self.engine.state()
        return replace(state, ready=False, why_not="it is stopping") if self.stopping else state

    def files(self, mark: AdapterMark | None) -> AdapterFiles | None:
        """Where an adapter's files must be; they are compared with its digest as they are read.

        Raises:
            EngineError: there is no folder of adapters.
        """
        if mark is None:
            return None
        if self._adapters is None:
            raise EngineError("the engine was started without --adapters", "adapter")
        folder = self._adapters / mark.name
        if self._adapters.name == mark.name and not folder.is_dir():
            folder = self._adapters  # the folder itself is an adapter, as in `library.py`
        return AdapterFiles(mark.name, folder, mark.digest, mark.rank, mark.bytes)

    def make_room(self) -> None:
        """Where too many connections are open, end the oldest without a key, or else the newest."""
        if len(self.wires) > MOST_CONNECTIONS:
            strangers = (one for one in self.wires if not one.known)
            next(strangers, next(reversed(self.wires))).end("too many connections are open")

    async def watch(self) -> None:
        """End connections that say nothing."""
        while True:
            await asyncio.sleep(1)
            for wire in list(self.wires):
                silent = time.monotonic() - wire.heard
                if silent > (SILENCE_SECONDS if wire.known else HEAD_SECONDS):
                    wire.end("it says nothing")

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, let running answers end within the time, then close."""
        self.stopping = True
        await self.engine.stop(grace_seconds)
        await asyncio.sleep(0)  # what was told last is written by now
        for wire in list(self.wires):
            wire.transport.close()
        end = time.monotonic() + FLUSH_SECONDS
        while self.wires and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for wire in list(self.wires):
            wire.end("it does not read what is said")


def _nothing() -> None:
    """Of a sequence that the engine has not taken in."""


@dataclass
class _GateSequence:
    """A sequence of a gate's: what ends its span, and what cancels it."""

    finish: Callable[[Ended | EngineError | None], None]
    cancel: Callable[[], None] = _nothing


class GateWire(Wire):
    """A connection that a gate has opened, or a stranger or a probe.

    Attributes:
        known: Whether it has shown the key.
    """

    def __init__(self, host: Headless) -> None:
        super().__init__()
        self.known = False
        self._host = host
        self._asked: dict[str, _GateSequence] = {}
        self._orders: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._host.wires[self] = None
        self._host.make_room()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel all that it asked for."""
        del self._host.wires[self]
        if self.known:
            LOG.warning("a gate is gone%s", f": {self.why}" if self.why else "")
        while self._asked:
            self._give_up(next(iter(self._asked)))

    def head_received(self, head: list[str]) -> None:
        """Answer a probe, or begin with a gate."""
        words, headers = head[0].split() if head else [], headers_of(head)
        path = words[1] if words[:1] == ["GET"] and len(words) == 3 else ""
        state = self._host.state()
        not_ready = ("503 Service Unavailable", f"not ready: {state.why_not}")
        if path == "/healthz":
            self._answer("200 OK", "alive")
        elif path == "/readyz":
            self._answer(*(("200 OK", "ready") if state.ready else not_ready))
        elif path != PATH or headers.get("upgrade") != UPGRADE:
            self._answer("404 Not Found", "an engine is here, for gates; clients ask a gate")
        elif not self._host.opens(headers.get("authorization", "")):
            self._answer("401 Unauthorized", "this needs the engine's key")
        elif not state.ready:
            self._answer(*not_ready)
        else:
            self.known = True
            upgrade = f"connection: upgrade\r\nupgrade: {UPGRADE}"
            self.transport.write(f"HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n\r\n".encode())
            engine = self._host.engine
            self.say(
                Hello(
                    version=__version__,
                    fingerprint=engine.fingerprint,
                    context_tokens=engine.context_tokens,
                )
            )

    def line_received(self, line: bytes) -> None:
        """Do what a gate wants."""
        try:
            message = OF_GATE.validate_json(line)
        except ValidationError:
            self.end("it speaks another language")
            return
        match message:
            case Ask():
                self._ask(message)
            case Cancel(id=id):
                self._give_up(id)
            case Poll():
                self.say(Report(state=self._host.state()))
            case _:
                order = asyncio.create_task(self._carry_out(message))
                self._orders.add(order)
                order.add_done_callback(self._orders.discard)

    def _ask(self, message: Ask) -> None:
        request, host = message.request, self._host
        known = message.adapter and message.adapter.name
        if request.id in self._asked or request.adapter != known or not 0 <= request.seed < INT64:
            self.end("it asks what cannot be meant")
            return
        # There before the engine knows of it, which may tell something at once.
        one = self._asked[request.id] = _GateSequence(traced_sequence(request, message.traceparent))
        try:
            if host.stopping:
                raise EngineError("the engine is stopping", "gone")
            files = host.files(message.adapter)
            one.cancel = host.engine.submit(request, files, partial(self._tell, request.id))
        except EngineError as error:
            self._tell(request.id, error)

    def _give_up(self, id: str) -> None:
        if one := self._asked.pop(id, None):
            one.finish(None)
            one.cancel()

    def _tell(self, id: str, event: Begun | Event | EngineError) -> None:
        if id not in self._asked:  # it was given up
            return
        if isinstance(event, Ended | EngineError):
            self._asked.pop(id).finish(event)
        self.say(SequenceEvent.of(id, event))

    async def _carry_out(self, order: Load | Unload) -> None:
        engine, done = self._host.engine, Done(number=order.number)
        try:
            if isinstance(order, Unload):
                done = Done(number=order.number, unloaded=await engine.unload(order.name))
            elif files := self._host.files(order.adapter):
                await engine.load(files, order.pin)
        except EngineError as error:
            done = Done(number=order.number, failure=Failure.of(error))
        except Exception:
            LOG.exception("an adapter cannot be loaded or unloaded")
            failure = Failure(message="the engine failed at this adapter", kind="gone")
            done = Done(number=order.number, failure=failure)
        self.say(Report(state=self._host.state()))
        self.say(done)

    def _answer(self, status: str, words: str) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        body = f"{words}\n".encode()
        length = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(f"{head}{length}".encode() + body)
        self.transport.close()


def run_headless(
    host: Headless, place: socket.socket, grace_seconds: float, on_ready: Callable[[], None]
) -> None:
    """Answer gates until a signal to stop comes; then finish what runs, within the time of grace.

    Args:
        host: Its engine is started and stopped here.
        place: Of `server.listening_socket`; closed at the end.
        grace_seconds: Of running answers.
        on_ready: Called once, when gates are answered.

    Raises:
        KeyboardInterrupt: it was stopped by Ctrl-C. SIGTERM ends it without an error.
        LauraError: the engine cannot start.
    """
    with place:
        if asyncio.run(_serve(host, place, grace_seconds, on_ready)) == signal.SIGINT:
            raise KeyboardInterrupt


async def _serve(
    host: Headless, place: socket.socket, grace_seconds: float, on_ready: Callable[[], None]
) -> signal.Signals | None:
    """Serve; the signal that ended it."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.put_nowait, number)
    server = await loop.create_server(host.wire, sock=place)
    starting, waiting = asyncio.create_task(host.engine.start()), asyncio.create_task(told.get())
    helpers = [waiting, asyncio.create_task(host.watch())]
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            gc.collect()  # as in `server.py`
            gc.freeze()
            on_ready()
            await waiting
        return waiting.result()
    finally:
        server.close()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        helpers.append(asyncio.create_task(_hurry(told, host.engine)))
        await host.stop(grace_seconds)
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def _hurry(told: asyncio.Queue[signal.Signals], engine: ServingEngine) -> None:
    """A second signal: whoever sent it does not want to wait."""
    await told.get()
    await engine.stop(0)
