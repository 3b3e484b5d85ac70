"""Connections: how many there may be, how long each may keep the server waiting, who gives way.

Whoever reaches the port can open connections, without a key. They must not use up the process'
files, nor its memory, and those with a key and those that ask little keep their place.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

LOG = logging.getLogger(__name__)
PATIENCE_SECONDS = 20.0
"""A connection ends that sends no whole head, or reads nothing of its answer, for so long."""
KEPT_SECONDS = 75.0
"""So long one is kept that has shown a key and asks nothing: clients and proxies, which keep
theirs for a minute at most, shall not meet one that is just being closed."""
MOST_AT_ONCE = 64  # that are taken in one turn of the loop
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def most_connections(wanted: int) -> int:
    """As many as are wanted, unless the process may open too few files for them.

    A quarter of its files is left for adapters, logs and pipes.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else min(wanted, files * 3 // 4)


class HttpServer(uvicorn.Server):
    """uvicorn's server, which leaves the signals to us and bounds its connections.

    A new connection at the limit takes the place of others. First those go that have shown no
    key, among them those of the address that has most, and of these the ones that have waited
    longest; then others without a request in work. If there are none, the new one is closed.

    Args:
        config: Of uvicorn.
        most: Connections at the same time.
        patience_seconds: As `PATIENCE_SECONDS`.
    """

    def __init__(
        self, config: uvicorn.Config, most: int, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        super().__init__(config)
        self._most, self._patience = most, patience_seconds
        self._open: set[PatientProtocol] = self.server_state.connections  # type: ignore[assignment]
        self._coming: set[asyncio.Task[None]] = set()
        self._places: list[socket.socket] = []
        self._troubles: Counter[str] = Counter()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen at sockets, with an eye on how many come: asyncio takes all there are."""
        await super().startup(sockets=[])
        self._places = sockets or []
        for place in self._places:
            place.setblocking(False)

    async def on_tick(self, counter: int) -> bool:
        """Every second, take connections again where files had run out, and end overdue ones."""
        if counter % 10 == 0:
            loop = asyncio.get_running_loop()
            for place in self._places:
                loop.add_reader(place, self._admit, place)
            for one in self._open:
                one.end_if_overdue(self._patience)
            for words, count in self._troubles.items():
                LOG.warning("%s (%d times)", words, count)
            self._troubles.clear()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and wait until those that there are have ended."""
        for place in self._places:
            asyncio.get_running_loop().remove_reader(place)
        await asyncio.gather(*self._coming)
        await super().shutdown(sockets)

    def end_all(self) -> None:
        """End every connection, whatever is still to be sent."""
        for one in self._open:
            if one.transport is not None:
                one.transport.abort()

    def _admit(self, place: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(MOST_AT_ONCE):
            full = len(self._open) >= self._most
            if full and self._coming:
                return  # in a moment these can give way
            try:
                wire, _ = place.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    continue  # of the one connection that had come
                self._troubles[f"no connection could be taken: {error}"] += 1
                self._make_room()
                loop.remove_reader(place)
                return
            if full:
                self._troubles[f"{self._most} connections are open, and more came"] += 1
                if not self._make_room():
                    wire.close()
                    return
            one = PatientProtocol(self.config, self.server_state, self.lifespan.state, loop)
            self._open.add(one)  # now, not when it has been set up: it has a file already
            coming = loop.create_task(self._connect(one, wire))
            self._coming.add(coming)
            coming.add_done_callback(self._coming.discard)
            if full:
                return  # the files of those that gave way are free in the next turn

    async def _connect(self, one: PatientProtocol, wire: socket.socket) -> None:
        try:
            # asyncio does so only where a socket names its protocol. Without it every piece
            # of an answer waits until the one before is acknowledged, some 40 ms.
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: one, wire)
        except OSError:  # its client has reset it already
            self._open.discard(one)
            wire.close()

    def _make_room(self) -> bool:
        """End a few connections, if there are any that must give way."""
        held = Counter(one.address for one in self._open)
        found = sorted(
            (one for one in self._open if one.gives_way),
            key=lambda one: (one.is_known, -held[one.address], one.since),
        )
        # Several, since looking for them takes a while where there are many.
        found = found[: 1 + self._most // 16]
        for one in found:
            one.transport.abort()
        return bool(found)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with bounded patience for clients that send or read nothing.

    uvicorn waits for ever for them, and takes in requests before the one ahead is answered.

    Attributes:
        since: Time of the loop at which the client last did what was expected of it.
    """

    since = 0.0
    _unread = 0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        # Whoever writes waits, and hears of it, as soon as something is unread.
        transport.set_write_buffer_limits(0)
        self.since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Take a request in, or more of it; what comes behind it ends with its answer."""
        if self._has_request:
            self.cycle.keep_alive = False
            return
        if not self._works and not self.conn.trailing_data[0]:
            self.since = self.loop.time()  # a head begins
        super().data_received(data)
        if self._has_request and self.conn.trailing_data[0]:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Say that it is no HTTP, unless an answer has begun; who works on one need not go on."""
        if self._works and self.cycle.response_started:
            self.transport.abort()
            return
        if self._works:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        self.since = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        """Everything has been read."""
        self.since = self.loop.time()
        super().resume_writing()

    def end_if_overdue(self, patience_seconds: float) -> None:
        """End it if its client keeps us waiting for longer; to be called every second or so."""
        if self.transport is None:
            return
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread or (self._works and not unread):
            self.since = self.loop.time()
        self._unread = unread
        rests = self.is_known and not (self._works or unread or self.conn.trailing_data[0])
        if self.loop.time() - self.since > (KEPT_SECONDS if rests else patience_seconds):
            self.transport.abort()

    @property
    def address(self) -> str:
        """Where it comes from."""
        return self.client[0] if self.client else ""

    @property
    def is_known(self) -> bool:
        """Whether its latest request may ask for answers, or administrate."""
        context = None if self.scope is None else self.scope["state"].get("context")
        return context is not None and (context.tenant is not None or context.admin)

    @property
    def gives_way(self) -> bool:
        """Whether it may be ended for another's sake: no whole request with a key is in work."""
        return self.transport is not None and not (self._has_request and self.is_known)

    @property
    def _works(self) -> bool:
        """Whether a request has no whole answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _has_request(self) -> bool:
        """Whether such a request has come whole."""
        return self._works and not self.cycle.more_body
