"""Clients that vanish, send halves, too much, too slowly or nonsense; nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from laura.serve.app import check_origin
from tests.serve.houses import BASE, House, build, key, listening, tenant, until

pytestmark = pytest.mark.usefixtures("engines")
HELLO = {"model": BASE, "messages": [{"role": "user", "content": "hello you"}]}


def raw(url: str, *parts: bytes, pause: float = 0.0, keep: bool = False) -> bytes:
    """Send bytes as they are; all that comes back until the server hangs up or pauses."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as wire:
        for part in parts:
            wire.sendall(part)
            time.sleep(pause)
        if keep:
            return b""
        wire.settimeout(3)
        got = b""
        try:
            while piece := wire.recv(65536):
                got += piece
        except TimeoutError:
            pass
        return got


def head(length: int | str, path: str = "/v1/chat/completions", **more: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json",
        "connection: close", f"content-length: {length}",
        *(f"{name}: {value}" for name, value in more.items()),
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def post(house: House, body: bytes, content_type: str = "application/json") -> Any:
    headers = {"content-type": content_type}
    return house.request("POST", "/v1/chat/completions", content=body, headers=headers)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\xfa", b'{"model": "\xff"}', b"\x00",
        b"[" * 200_000, b'{"a":' * 100_000, json.dumps(HELLO).encode() + b"x",
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"\\ud800": 1}', b'{"model": "\\ud800", "messages": []}',
        b'{"model": 1e999, "messages": []}', b'{"model": NaN}', json.dumps(HELLO).encode("utf-32"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(micro_tokenizer: Any, body: bytes) -> None:
    house = build(micro_tokenizer)
    response = post(house, body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "traceback" not in house.log.getvalue()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(micro_tokenizer: Any, kind: str) -> None:
    """A page of another site can send these without asking its visitor's browser."""
    house = build(micro_tokenizer)
    response = post(house, json.dumps(HELLO).encode(), kind)
    assert response.status_code == 400 and not house.engine.asked


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_json_by_any_of_its_names_is_taken(micro_tokenizer: Any, kind: str) -> None:
    house = build(micro_tokenizer)
    assert post(house, json.dumps(HELLO).encode(), kind).status_code == 200


def test_bodies_that_are_too_large(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, body_bytes=1000)
    assert post(house, b" " * 1001).status_code == 413
    with listening(house) as url:
        told = raw(url, head(10**12))
        assert status_of(told) == 413 and b"connection: close" in told.lower()
        assert status_of(raw(url, head(2000), b"x" * 2000)) == 413
        assert status_of(raw(url, head(10**12, expect="100-continue"))) == 413
        chunked = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
        assert status_of(raw(url, chunked, *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 3)) == 413
        lies = head("9" * 400)
        assert status_of(raw(url, lies)) in (400, 413)
        for wrong in ("-5", "1e3", "0x10", "5, 5, 6"):
            # No body: the server hangs up at once, and what it has not read would reset the line.
            assert status_of(raw(url, head(wrong))) == 400
    assert not house.engine.asked


def test_strangers_are_told_off_before_they_are_heard(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    with listening(house) as url:
        assert status_of(raw(url, head(1000))) == 401
        assert status_of(raw(url, head(1000, path="/healthz"))) == 413
        bearer = key("ann")
        body = json.dumps({**HELLO, "max_tokens": 3}).encode()
        assert status_of(raw(url, head(len(body), **bearer), body)) == 200


def test_a_body_that_comes_slowly(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, body_seconds=0.3)
    with listening(house) as url:
        told = raw(url, head(1000), *[b"x"] * 4, pause=0.15)
    assert status_of(told) == 408 and b"connection: close" in told.lower()


def test_half_a_request_leaves_nothing_behind(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    body = json.dumps(HELLO).encode()
    with listening(house) as url:
        for part in (b"", b"POST /v1/ch", head(500), head(len(body)) + body[:20]):
            raw(url, part, keep=True)
        until(lambda: house.log.getvalue().count("client_gone") == 2)
    assert not house.engine.asked


def test_clients_that_vanish_in_every_state(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"pause": 0.05}, heartbeat_seconds=0.1)
    long = {**HELLO, "messages": [{"role": "user", "content": "word " * 100}]}
    with listening(house) as url:
        for stream in (False, True):
            body = json.dumps({**long, "stream": stream, "n": 2}).encode()
            before = len(house.engine.cancelled)
            raw(url, head(len(body)), body, pause=0.2, keep=True)
            until(lambda seen=before: len(house.engine.cancelled) == seen + 2)
        house.engine.pause, house.engine.gate = 0, asyncio.Event()
        for stream in (False, True):  # and while they wait in the queue
            body = json.dumps({**long, "stream": stream}).encode()
            before = len(house.engine.cancelled)
            raw(url, head(len(body)), body, pause=0.3, keep=True)
            until(lambda seen=before: len(house.engine.cancelled) == seen + 1)
    assert not house.engine.running


def test_a_client_that_does_not_read_holds_no_place_for_ever(micro_tokenizer: Any) -> None:
    house = build(
        micro_tokenizer,
        engine={"context_tokens": 10**6},
        request_seconds=0.5,
        heartbeat_seconds=0.1,
        default_new_tokens=40_000,
    )
    words = [{"role": "user", "content": "word " * 20000}]
    wanted = {"model": BASE, "messages": words, "stream": True, "logprobs": True, "top_logprobs": 5}
    body = json.dumps(wanted).encode()
    with listening(house) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((host, int(port)))
            wire.sendall(head(len(body)) + body)
            until(lambda: house.engine.asked != [])
            until(lambda: house.engine.running == {}, seconds=30)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"host": "localhost"}, True),
        ({"host": "localhost:8000"}, True),
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "LOCALHOST"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "localhost.evil.example"}, False),
        ({"host": "192.168.1.5:8000"}, False),
        ({"host": ""}, False),
        ({"host": "[::1"}, False),
        ({}, False),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, False),
        ({"host": "localhost:8000", "origin": "https://localhost:8000"}, False),
        ({"host": "localhost:8000", "origin": "http://evil.example"}, False),
        ({"host": "localhost:8000", "origin": "null"}, False),
    ],
)
def test_pages_of_other_sites_are_kept_out(headers: dict[str, str], passes: bool) -> None:
    from starlette.datastructures import Headers

    from laura.serve.schemas import ApiError

    if passes:
        check_origin(Headers(headers), "127.0.0.1")
        return
    with pytest.raises(ApiError) as caught:
        check_origin(Headers(headers), "127.0.0.1")
    assert caught.value.status == 403


def test_another_sites_page_unloads_nothing(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    house.engine.slots["maths"] = False

    headers = {"origin": "http://evil.example"}
    answer = house.request("POST", "/admin/adapters/maths/unload", headers=headers)
    assert answer.status_code == 403 and house.engine.slots == {"maths": False}
