"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from laura.results.errors import UsageError
from laura.serve.auth import check_address
from laura.serve.server import listening_socket
from laura.serve.settings import ServeSettings
from tests.serve.houses import until

ROOT = Path(__file__).parents[2]
HELLO = {"model": "micro", "messages": [{"role": "user", "content": "a b c d e"}]}
SCRIPT = """
import gc
import sys
from starlette.responses import Response
from laura.models.load import load_tokenizer
from laura.models.registry import MICRO_BASE
from laura.serve.server import listening_socket, run, url_of
from tests.serve.houses import build

pause, grace = map(float, sys.argv[1:3])
house = build(load_tokenizer(MICRO_BASE), grace_seconds=grace, port=0,
              engine={"pause": pause, "ready": False})
house.app.add_api_route("/objects", lambda: [len(gc.get_objects()), gc.get_freeze_count()])
house.app.add_api_route("/huge", lambda: Response(b"x" * (16 << 20)))
if len(sys.argv) > 3:
    async def start():
        raise OSError("no such device")
    house.engine.start = start
place = listening_socket(house.app.state.service.settings)
url = url_of(place)
run(house.app, place, house.engine, lambda: print(url, flush=True))
print("ended", len(house.engine.cancelled), house.engine.running, flush=True)
"""


@contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and where it listens."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def streamed(url: str, told: list[str]) -> None:
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={**HELLO, "stream": True}, timeout=60
    ) as response:
        told += response.iter_lines()


def begin(url: str) -> tuple[threading.Thread, list[str]]:
    told: list[str] = []
    reader = threading.Thread(target=streamed, args=(url, told))
    reader.start()
    until(lambda: len(told) > 2, seconds=60)
    return reader, told


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, -signal.SIGINT)])
def test_a_stop_lets_running_answers_end(number: signal.Signals, code: int) -> None:
    with process("0.1", "60") as (child, url):
        reader, told = begin(url)
        child.send_signal(number)
        reader.join(60)
        out, _ = child.communicate(timeout=60)
        assert told[-2:] == ["data: [DONE]", ""]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")
    if number == signal.SIGTERM:
        assert (child.returncode, out.strip()) == (code, "ended 0 {}")
    else:
        # KeyboardInterrupt, which `laura.cli.console` makes an exit code of 130 of.
        assert child.returncode in (code, 130)


@pytest.mark.slow
def test_answers_that_go_on_too_long_are_broken_off_with_a_word() -> None:
    with process("0.5", "0.2") as (child, url):
        reader, told = begin(url)
        child.send_signal(signal.SIGTERM)
        reader.join(60)
        out, _ = child.communicate(timeout=60)
    error = json.loads(told[-2].removeprefix("data: "))["error"]
    assert error["code"] == "stopping" and child.returncode == 0
    assert out.strip() == "ended 0 {}"


@pytest.mark.slow
def test_clients_that_do_not_read_delay_a_stop_by_no_more_than_the_time_to_flush() -> None:
    with process("0", "60") as (child, url), ExitStack() as stack:
        address = url.removeprefix("http://").split(":")
        for _ in range(20):
            wire = stack.enter_context(socket.socket())
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((address[0], int(address[1])))
            wire.sendall(b"GET /huge HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert wire.recv(9) == b"HTTP/1.1 "
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=30)
    assert (child.returncode, out.strip()) == (0, "ended 0 {}")


@pytest.mark.slow
def test_garbage_is_not_looked_for_among_the_libraries() -> None:
    """A collection of all that was imported stopped every request for a third of a second."""
    with process("0", "1") as (_, url):
        watched, left_alone = httpx.get(f"{url}/objects").json()
    assert watched < left_alone / 10


@pytest.mark.slow
def test_an_engine_that_does_not_start_ends_the_server() -> None:
    with process("0", "1", "fails") as (child, _):
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1 and "no such device" in err


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}.*--port 0"):
            listening_socket(ServeSettings(base="m", port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_without_keys_no_other_machine_is_let_in(host: str) -> None:
    with pytest.raises(UsageError, match="laura tenants add"):
        check_address(host, has_tenants=False)
    check_address(host, has_tenants=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    check_address(host, has_tenants=False)
