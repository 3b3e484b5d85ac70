"""Connections of strangers: many, silent, deaf or malformed; others are served all the same."""

from __future__ import annotations

import errno
import http.client
import json
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import Response

from laura.serve.connections import HttpServer, most_connections
from tests.serve.houses import BASE, House, build, key, listening, tenant, until
from tests.serve.real_server import serving
from tests.serve.test_hostile_clients import head, raw

PING = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = PING[:-2] + b"transfer-encoding: chunked\r\n\r\n"
HUGE = 16 << 20
HELLO = {"model": BASE, "messages": [{"role": "user", "content": "one two three " * 8}]}


@contextmanager
def hosted(house: House, most: int = 16, patience: float = 20) -> Iterator[tuple[HttpServer, str]]:
    """A server with a limit of connections; `/huge` is more than any buffer holds."""
    made: list[HttpServer] = []

    def make(config: uvicorn.Config) -> HttpServer:
        made.append(HttpServer(config, most, patience))
        return made[0]

    house.app.add_api_route("/huge", lambda: Response(b"x" * HUGE))
    with listening(house, make) as url:
        yield made[0], url


def connect(
    url: str, *parts: bytes, source: str = "127.0.0.1", room: int = 0, pause: float = 0
) -> socket.socket:
    wire = socket.socket()
    wire.settimeout(10)
    if room:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    wire.bind((source, 0))
    host, port = url.removeprefix("http://").split(":")
    wire.connect((host, int(port)))
    with suppress(ConnectionError):
        for part in parts:
            wire.sendall(part)
            time.sleep(pause)
    return wire


def open_now(server: HttpServer) -> int:
    return len(server.server_state.connections)


def healthy(url: str) -> bool:
    began = time.monotonic()
    return httpx.get(f"{url}/healthz", timeout=5).is_success and time.monotonic() - began < 3


def test_who_has_shown_a_key_keeps_the_place(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"), engine={"pause": 0.03})
    with hosted(house) as (server, url), ExitStack() as stack:
        client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        stack.callback(client.close)
        client.request("GET", "/v1/models", headers=key("ann"))
        client.getresponse().read()
        asked = stack.enter_context(
            httpx.stream(
                "POST", f"{url}/v1/chat/completions", json={**HELLO, "stream": True},
                headers=key("ann"), timeout=20,
            )
        )  # fmt: skip
        lines = asked.iter_lines()
        assert next(lines).startswith("data: ")
        for _ in range(60):
            stack.enter_context(connect(url))
        for _ in range(6):  # at the limit each time
            stack.enter_context(connect(url))
            assert healthy(url)
        assert open_now(server) <= 16
        client.request("GET", "/v1/models", headers=key("ann"))  # by the same connection
        assert client.getresponse().status == 200
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_the_address_that_has_most_gives_way(micro_tokenizer: Any) -> None:
    with hosted(build(micro_tokenizer)) as (_, url), ExitStack() as stack:
        try:
            alone = stack.enter_context(connect(url, source="127.0.0.2"))
        except OSError:
            pytest.skip("this machine has one address of its own")
        for _ in range(60):
            stack.enter_context(connect(url))
        alone.sendall(PING)
        assert alone.recv(100).startswith(b"HTTP/1.1 200 ")


def test_where_all_have_work_a_new_one_is_closed(
    micro_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    house = build(micro_tokenizer, engine={"pause": 0.3})
    with hosted(house, most=2) as (_, url), ExitStack() as stack:
        body = json.dumps({**HELLO, "stream": True}).encode()
        for _ in range(2):
            wire = stack.enter_context(connect(url, head(len(body)) + body))
            assert wire.recv(100).startswith(b"HTTP/1.1 200 ")
        for _ in range(20):
            with suppress(ConnectionError), connect(url, PING) as wire:
                assert wire.recv(100) == b""
        until(lambda: "2 connections are open" in caplog.text)
    assert len([one for one in caplog.records if "connections are open" in one.message]) <= 3


def test_who_has_asked_may_ask_again_later(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    with hosted(house, patience=0.2) as (server, url):
        clients = [http.client.HTTPConnection(url.removeprefix("http://")) for _ in range(2)]
        for client, headers in zip(clients, (key("ann"), {}), strict=True):
            client.request("GET", "/v1/models", headers=headers)
            client.getresponse().read()
        until(lambda: open_now(server) == 1)
        time.sleep(1.2)  # connections are looked through every second
        clients[0].request("GET", "/v1/models", headers=key("ann"))
        assert clients[0].getresponse().status == 200
        for client in clients:
            client.close()


def test_heads_that_do_not_come_are_not_waited_for(micro_tokenizer: Any) -> None:
    with hosted(build(micro_tokenizer), patience=0.2) as (server, url):
        for parts in ((b"",), (b"GET /healthz HT",), (PING, b"GET /heal")):
            began = time.monotonic()
            with suppress(ConnectionError):
                told = raw(url, *parts, pause=0.1)
                assert told.count(b"200 OK") == (PING in parts)
            assert time.monotonic() - began < 2.5, "the server should have hung up"
        assert open_now(server) == 0


def test_who_reads_nothing_is_not_waited_for_and_who_reads_slowly_is(micro_tokenizer: Any) -> None:
    ask = PING.replace(b"healthz", b"huge")
    # Far more than the slow one's pauses, also where the machine is busy.
    with hosted(build(micro_tokenizer), patience=3) as (server, url), ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(url, ask, room=4096))
        slow = stack.enter_context(
            connect(url, ask.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        )
        got = 0
        while piece := slow.recv(HUGE // 6, socket.MSG_WAITALL):
            got += len(piece)
            time.sleep(0.4)
        assert got > HUGE
        until(lambda: open_now(server) == 0, seconds=15)


def test_one_request_at_a_time(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"pause": 0.02})
    with hosted(house) as (server, url):
        assert raw(url, PING * 1000).count(b"200 OK") == 1
        assert len(house.log.getvalue().splitlines()) == 1
        # Nor does it help to wait for a moment.
        body = json.dumps(HELLO).encode()
        ask = head(len(body)).replace(b"connection: close\r\n", b"") + body
        assert raw(url, ask, PING * 100, PING * 100, pause=0.05).count(b"200 OK") == 1
        assert raw(url, ask, PING[:9], pause=0.05).count(b"200 OK") == 1
        with connect(url) as wire:  # one after the other, over one connection
            for _ in range(3):
                wire.sendall(PING)
                told = b""
                while b"alive" not in told:
                    told += wire.recv(1000)
                assert told.startswith(b"HTTP/1.1 200 ")
            # Small pieces of an answer do not wait for one another.
            (one,) = server.server_state.connections
            wired = one.transport.get_extra_info("socket")
            assert wired.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_without_files_the_server_waits_and_says_so_once_a_second(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = 0

    def accept(self: socket.socket) -> Any:
        nonlocal tried
        tried += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with hosted(build(micro_tokenizer)) as (_, url):
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "accept", accept)
            wire = connect(url, PING)
            until(lambda: "Too many open files" in caplog.text)
        with wire:
            assert wire.recv(100).startswith(b"HTTP/1.1 200 ")
    assert tried <= 3 and len(caplog.records) <= 3 and "Traceback" not in caplog.text


def test_a_quarter_of_the_files_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for files, most in ((256, 192), (65536, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert most_connections(1000) == most


@pytest.mark.parametrize("seed", range(2))
def test_whatever_strangers_do(
    micro_tokenizer: Any, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Anything in any order: then the server answers at once, and every file is back."""
    draw = random.Random(seed)
    house = build(micro_tokenizer, tenant("ann", "*"), body_seconds=0.3, engine={"pause": 0.01})
    body = json.dumps({**HELLO, "stream": True}).encode()
    ask = head(len(body), **key("ann")) + body
    huge = PING.replace(b"healthz", b"huge")
    behaviours: list[tuple[bytes, ...]] = [
        (), (PING[:20],), (PING,), (PING * 50,), (PING, PING), (huge,), (huge, PING[:9], PING),
        (b"\x16\x03\x01\x02\x00\x01",), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), (b"\r\n" * 40_000,),
        (CHUNKED,), (CHUNKED, b"5\r\nab"), (CHUNKED + b"zz\r\n",),
        (CHUNKED, b"1\r\na\r\n", b"zz\r\n"),
        (PING[:-2] + b"content-length: 99\r\n\r\n", PING), (PING[:-2] + b"x: " + b"y" * 70_000,),
        (PING[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", PING),
        (PING[:-2] + b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n",),
        (PING.replace(b"1.1", b"1.0"), PING), (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", b"abc"),
        (ask,), (ask, b"zz"), (ask, PING), (ask, b"\r\n"), (ask[:-9],),
        (PING.replace(b"GET", b"HEAD"), PING), (PING.replace(b"/healthz", b"http://[/"),),
    ]  # fmt: skip
    before = len(os.listdir("/dev/fd"))
    with hosted(house) as (server, url):
        inside = len(os.listdir("/dev/fd"))
        wires: list[socket.socket] = []
        for _ in range(60):
            parts, room = draw.choice(behaviours), draw.choice([0, 4096])
            wires.append(connect(url, *parts, room=room, pause=draw.choice([0, 0.005, 0.05])))
            for wire in draw.sample(wires, len(wires) // 20):
                wires.remove(wire)
                if draw.random() < 0.5:
                    reset = struct.pack("ii", 1, 0)
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                wire.close()
        assert healthy(url)
        assert open_now(server) <= 16
        for wire in wires:
            wire.close()
        until(lambda: open_now(server) == 0, seconds=10)
        until(lambda: not server.server_state.tasks, seconds=10)
        until(lambda: len(os.listdir("/dev/fd")) <= inside)
    assert len(os.listdir("/dev/fd")) <= before
    assert not [one for one in caplog.records if one.name == "asyncio"], caplog.text
    assert "traceback" not in house.log.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_command_with_few_files() -> None:
    words = ("micro", "--device", "cpu", "--grace", "1")
    with serving(*words, files=256) as server, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(server.url))
        assert healthy(server.url)
    troubles = [line for line in server.log if not line.startswith("{")]
    assert len(troubles) < 10 and "Traceback" not in "".join(server.log), troubles


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_log_that_nobody_reads_stops_nothing() -> None:
    words = ("micro", "--device", "cpu", "--grace", "1")
    with serving(*words, unread=True) as server, httpx.Client(base_url=server.url) as client:
        for _ in range(5000):
            assert client.get("/healthz", timeout=10).is_success
        assert "laura_dropped_log_lines_total 0.0" not in client.get("/metrics").text
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(60) == 0
