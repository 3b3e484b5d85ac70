"""The thread that owns the live engine: it admits, steps, loads adapters and tells what came.

    queue -> (adapter read from disk -> slot) -> row -> steps -> events

An ask whose adapter is not loaded yet lets others pass (see loading.py); one that has no row
yet does not, or a long one would wait for ever behind short ones.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from laura.engine.continuation import Continuation
from laura.engine.continuation import News as LiveNews
from laura.engine.live import LiveEngine
from laura.engine.live_text import Score
from laura.engine.sampling import draw_of
from laura.results.errors import AdapterError
from laura.serve.engines import (
    AdapterFiles,
    Ended,
    EngineError,
    EngineState,
    NewText,
    PromptScores,
    SlotState,
    TokenScore,
)
from laura.serve.fairness import FairQueue
from laura.serve.loading import Adapter, Loading, NotYet, Read
from laura.serve.rates import TokenRate
from laura.serve.tickets import GONE, News, Ticket, call, deliver

STARTING = EngineState(False, "it is starting", (), 0, {}, {}, 0.0, {})


class EngineRoom:
    """Everything that happens in the engine's thread.

    Args:
        make: Makes the live engine.
        queue: Tickets that wait; guarded by this class's lock.
        read: Reads an adapter's files.

    Attributes:
        made: Set when the engine is made, or cannot be.
        failed: Why the engine cannot be made, or died.
    """

    def __init__(
        self, make: Callable[[], LiveEngine], queue: FairQueue[Ticket], read: Read
    ) -> None:
        self._make, self._queue, self._read = make, queue, read
        self.made = threading.Event()
        self.failed: BaseException | None = None
        self._lock = threading.Condition()
        # Guarded by the lock:
        self._orders: deque[Callable[[], None]] = deque()
        self._cancelled: list[Ticket] = []
        self._fresh = self._over = False
        self._stop_at: float | None = None
        self._rate = TokenRate()
        self._state = STARTING
        # The thread's own:
        self._live: LiveEngine | None = None
        self._tickets: dict[Continuation, Ticket] = {}
        self._loading: Loading | None = None
        self._news: list[News] = []
        self._thread = threading.Thread(target=self._run, name="laura-engine", daemon=True)

    # Called from the loop's thread.

    def start(self) -> None:
        """Begin; `made` is set when the engine is there, or has failed."""
        self._thread.start()

    @property
    def takes(self) -> bool:
        """Whether new asks are taken."""
        return self.made.is_set() and not self._over and self._stop_at is None

    def can_ever_take(self, tokens: int) -> bool:
        """Whether there is memory for a sequence of so many tokens."""
        return self._live is None or self._live.lanes.can_ever_hold(tokens)

    def put(self, ticket: Ticket) -> None:
        """Let a ticket wait.

        Raises:
            QueueFull: there is no place.
        """
        ask = ticket.ask
        with self._lock:
            cost = len(ask.prompt) + ask.max_new_tokens
            self._queue.put(ticket, ask.tenant, ask.priority, cost)
            self._fresh = True
            self._lock.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Forget a ticket, waiting or in work."""
        with self._lock:
            if not self._queue.remove(ticket, ticket.ask.tenant):
                self._cancelled.append(ticket)
                self._lock.notify()

    def order(
        self, work: Callable[[], object], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[object] | None:
        """Have something done between two steps; a future of `loop`, None if the thread is over."""
        answer: asyncio.Future[object] = loop.create_future()

        def tell(way: Callable[[object], None], what: object) -> None:
            call(loop, lambda: None if answer.done() else way(what))

        def do() -> None:
            try:
                if self._over:
                    raise EngineError(GONE, "gone")
                done = work()
                self._publish()  # who asks for the state next finds it done
                tell(answer.set_result, done)
            except Exception as error:
                tell(answer.set_exception, error)  # type: ignore[arg-type]

        with self._lock:
            if self._over:
                return None
            self._orders.append(do)
            self._lock.notify()
        return answer

    def stop(self, grace_seconds: float) -> None:
        """Finish what runs within the time, then end."""
        with self._lock:
            self._stop_at = time.monotonic() + grace_seconds
            self._lock.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def seconds_until_room(self, tenants_own: bool) -> float:
        """About when the queue has a place again."""
        with self._lock:
            return self._queue.seconds_until_room(self._rate.per_second(), tenants_own)

    def state(self) -> EngineState:
        """What the thread was doing after its last step."""
        with self._lock:
            waiting, rate = self._queue.waiting(), self._rate.per_second()
            return replace(self._state, waiting=waiting, tokens_per_second=rate)

    # In the engine's thread from here on.

    def place(self, files: AdapterFiles, adapter: Adapter, pin: bool) -> None:
        """Bring an adapter into a slot, and keep it there if `pin`."""
        slots = self._engine.slots
        slot = slots.find(files.name, files.digest)
        slot = slot or slots.place(files.name, files.digest, *adapter)
        slot.pinned = pin

    def remove(self, name: str) -> bool:
        """Free an adapter's slot unless it is in use."""
        return self._engine.slots.remove(name)

    @property
    def _engine(self) -> LiveEngine:
        assert self._live is not None
        return self._live

    def _run(self) -> None:
        try:
            with self._make() as self._live:
                self._loading = Loading(self._live.slots, self._read, self._notice)
                self._publish()
                self.made.set()
                while self._turn():
                    pass
        except BaseException as error:
            self.failed = error
            logging.getLogger(__name__).error("the engine has died", exc_info=error)
        finally:
            self._close()
            self.made.set()

    def _turn(self) -> bool:
        """Everything that is due, and one step; False when it is time to end."""
        with self._lock:
            self._lock.wait_for(self._due)
            self._fresh = False
            orders, self._orders = self._orders, deque()
            cancelled, self._cancelled = self._cancelled, []
            stop_at = self._stop_at
        for ticket in cancelled:
            self._drop(ticket)
        for do in orders:
            do()
        if stop_at is None:
            self._admit()
        elif not self._engine.busy or time.monotonic() >= stop_at:
            return False
        self._take_in(self._engine.step())
        self._publish()
        deliver(self._news)
        self._news = []
        return True

    def _due(self) -> bool:
        waits = self._fresh or self._orders or self._cancelled or self._stop_at is not None
        return bool(waits) or self._engine.busy

    def _admit(self) -> None:
        """Begin what waits, in fair order, as far as there is room."""
        while self._admit_one():
            pass

    def _admit_one(self) -> bool:
        with self._lock:
            waiting = list(self._queue.in_order())
        assert self._loading is not None
        self._loading.look_anew(ticket.adapter for ticket in waiting)
        for ticket in waiting:
            try:
                wanted = self._continuation(ticket)
            except NotYet:
                continue
            except AdapterError as error:
                return self._refuse(ticket, EngineError(str(error), "adapter"))
            if not self._engine.add(wanted):
                return False
            with self._lock:
                there = self._queue.remove(ticket, ticket.ask.tenant)
                self._queue.charge(ticket.ask.tenant, len(wanted.prompt))
            if there:
                self._tickets[wanted] = ticket
            else:
                self._engine.drop(wanted)
            return True
        return False

    def _refuse(self, ticket: Ticket, error: EngineError) -> bool:
        with self._lock:
            self._queue.remove(ticket, ticket.ask.tenant)
        self._news.append((ticket, error))
        return True

    def _continuation(self, ticket: Ticket) -> Continuation:
        ask, slot = ticket.ask, None
        if ticket.adapter is not None:
            assert self._loading is not None
            slot = self._loading.slot(ticket.adapter)
        return Continuation(
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

    def _notice(self) -> None:
        with self._lock:
            self._fresh = True
            self._lock.notify()

    def _drop(self, ticket: Ticket) -> None:
        for wanted, own in self._tickets.items():
            if own is ticket:
                self._engine.drop(wanted)
                del self._tickets[wanted]
                return

    def _take_in(self, news: list[LiveNews]) -> None:
        """What a step brought, as events."""
        tokens: Counter[str] = Counter()
        for one in news:
            wanted, ticket = one.of, self._tickets[one.of]
            tokens[ticket.ask.tenant] += 1
            if one.prompt:
                self._news.append((ticket, PromptScores(_scores(one.prompt))))
            if one.told.text or one.told.scores:
                self._news.append((ticket, NewText(one.told.text, _scores(one.told.scores))))
            if one.finish:
                counts = (len(wanted.prompt), len(wanted.tokens), wanted.cached)
                self._news.append((ticket, Ended(one.finish, *counts)))
            if one.fault:
                kind = "adapter" if wanted.slot else "request"
                what = f"the answer broke off: {one.fault}"
                self._news.append((ticket, EngineError(what, kind)))  # type: ignore[arg-type]
            if one.finish or one.fault:
                del self._tickets[wanted]
        with self._lock:
            # A place is free again: who waits for it must be looked at, also where nobody runs.
            self._fresh = self._fresh or any(one.finish or one.fault for one in news)
            for tenant, count in tokens.items():
                self._queue.charge(tenant, count)
            if tokens:
                self._rate.add(tokens.total())

    def _publish(self) -> None:
        live = self._engine
        held = [
            SlotState(slot.name, slot.pinned, slot.uses, slot.bytes)
            for slot in live.slots.held.values()
        ]
        running = Counter(ticket.ask.tenant for ticket in self._tickets.values())
        memory = {
            "weights": live.weight_bytes,
            "adapters": live.slots.bytes,
            "cache": live.lanes.bytes + live.beginnings.bytes,
        }
        state = EngineState(
            True, "", tuple(held), live.slots.most, dict(running), {}, 0.0, memory,
            live.lanes.tokens, live.drafted_tokens, live.accepted_tokens,
        )  # fmt: skip
        with self._lock:
            self._state = state

    def _close(self) -> None:
        """Tell everybody that there is nothing more, and free what was held."""
        with self._lock:
            self._over = True
            orders, self._orders = self._orders, deque()
            left = list(self._queue.in_order())
            for ticket in left:
                self._queue.remove(ticket, ticket.ask.tenant)
            why = "it has stopped" if self.failed is None else "it has died of a fault"
            self._state = replace(STARTING, why_not=why)
        if self.failed is None:
            for wanted, ticket in self._tickets.items():
                counts = (len(wanted.prompt), len(wanted.tokens), wanted.cached)
                self._news.append((ticket, Ended("cancelled", *counts)))
        else:
            left += self._tickets.values()
        self._news += [(ticket, EngineError(GONE, "gone")) for ticket in left]
        for do in orders:
            do()
        deliver(self._news)
        if self._loading is not None:
            self._loading.close()
        self._news, self._tickets, self._live, self._loading = [], {}, None, None


def _scores(scores: tuple[Score, ...]) -> tuple[TokenScore, ...]:
    return tuple(TokenScore(*score) for score in scores)
