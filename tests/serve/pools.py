"""Fake engines behind a pool, all in one event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from laura.models.load import fingerprint
from laura.models.registry import MICRO_BASE
from laura.serve.async_engine import call
from laura.serve.engines import AdapterFiles, EngineState, SequenceRequest, Tell
from laura.serve.headless import Headless
from laura.serve.pool import EnginePool
from laura.serve.settings import EngineSettings
from laura.serve.wire import Unload
from tests.serve.fake_engine import FakeEngine

KEY = "k" * 32
LIBRARY = Path("/nowhere/library")


@cache
def micro_fingerprint() -> str:
    return fingerprint(MICRO_BASE)


@dataclass
class FakeHost:
    """A headless engine that can be killed and started again at the same address."""

    engine: FakeEngine
    place: tuple[str, int] = ("127.0.0.1", 0)
    host: Headless = field(init=False)

    async def start(self) -> None:
        self.host = Headless(self.engine, LIBRARY, KEY)
        place = socket.create_server(self.place)
        self.place = place.getsockname()[:2]
        self.server = await asyncio.get_running_loop().create_server(self.host.wire, sock=place)

    def kill(self) -> None:
        self.server.close()
        for wire in list(self.host.wires):
            wire.transport.abort()

    @property
    def url(self) -> str:
        return f"http://{self.place[0]}:{self.place[1]}"


def pool_of(*urls: str, key: str = KEY, seconds: float = 5) -> EnginePool:
    settings = EngineSettings(base="micro", kind="pool", backends=urls, key=key)
    return EnginePool(MICRO_BASE, settings, start_seconds=seconds)


@dataclass
class Pooled:
    """A pool that has been started."""

    hosts: list[FakeHost]
    pool: EnginePool

    def host_of(self, id: str) -> FakeHost:
        """Who was asked for a sequence last."""
        (host,) = (one for one in self.hosts if any(ask.id == id for ask in one.engine.asked))
        return host


@asynccontextmanager
async def pooled(tokenizer: Any, count: int = 2, **changes: Any) -> AsyncIterator[Pooled]:
    changes = {"fingerprint": micro_fingerprint(), **changes}
    hosts = [FakeHost(FakeEngine(tokenizer, **changes)) for _ in range(count)]
    for one in hosts:
        await one.start()
    pool = pool_of(*(one.url for one in hosts))
    await pool.start()
    try:
        yield Pooled(hosts, pool)
    finally:
        await pool.stop(0)
        for one in hosts:
            one.kill()


async def soon(there: Any, seconds: float = 10) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not there():
            await asyncio.sleep(0.005)


class Behind:
    """A `ServingEngine`: a fake engine behind a pool, in a loop of their own.

    The houses' tests begin a loop for each request, and an engine lives longer.
    """

    def __init__(self, fake: FakeEngine) -> None:
        self.tokenizer, self.fingerprint = fake.tokenizer, fake.fingerprint
        self.context_tokens = fake.context_tokens
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._host = FakeHost(fake)
        self._run(self._host.start)
        self._pool = pool_of(self._host.url)
        # The fake is of no real base, and reads as much as a test wants.
        self._pool.fingerprint, self._pool.context_tokens = fake.fingerprint, fake.context_tokens
        self._run(self._pool.start)

    def close(self) -> None:
        self._run(lambda: self._pool.stop(0))
        self._run(self._host.kill)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def start(self) -> None:
        pass

    async def stop(self, grace_seconds: float) -> None:
        await asyncio.to_thread(self._run, lambda: self._pool.stop(grace_seconds))

    def submit(
        self, request: SequenceRequest, adapter: AdapterFiles | None, tell: Tell
    ) -> Callable[[], None]:
        here, told = asyncio.get_running_loop(), deque[Any]()

        def hand_on() -> None:
            while told:
                tell(told.popleft())

        def note(event: Any) -> None:
            told.append(event)
            call(here, hand_on)

        cancel = self._run(lambda: self._pool.submit(request, adapter, note))

        def cancel_here() -> None:
            self._run(cancel)
            hand_on()  # before this returns, as from an engine in this loop

        return cancel_here

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        await asyncio.to_thread(self._run, lambda: self._pool.load(adapter, pin))

    async def unload(self, name: str) -> bool:
        found: bool = await asyncio.to_thread(self._run, lambda: self._pool.unload(name))
        return found

    def state(self) -> EngineState:
        """What it is doing now, not a second ago: an order is answered with a report."""
        (backend,) = self._pool._backends

        async def now() -> EngineState:
            await backend.carry_out(lambda number: Unload(number=number, name=""))
            return self._pool.state()

        found: EngineState = self._run(now)
        return found

    def _run(self, work: Callable[[], Any]) -> Any:
        """Do something in the other loop, and wait until it is done."""

        async def there() -> Any:
            found = work()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(30)
