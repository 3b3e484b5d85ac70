"""Everything at once: strangers, the worst bodies, a log that nobody reads, kills.

`LAURA_CHAOS_SECONDS=600 pytest tests/serve/test_chaos.py -s` is the long run, once for each engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from laura.models.registry import MICRO_BASE
from laura.serve.database import Database
from laura.serve.tenant_changes import replace
from tests.models.test_vllm_engine import Fake
from tests.serve import test_soak
from tests.serve.alone import write_adapters
from tests.serve.houses import ADMIN, file_of, key, tenant
from tests.serve.real_server import ENVIRONMENT, command
from tests.serve.test_bodies import WORST
from tests.serve.test_soak import KINDS, Asked, all_asked

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SECONDS = float(os.environ.get("LAURA_CHAOS_SECONDS", "40"))
CLIENTS, VANISHING, SLOTS, GRACE_SECONDS = 64, 8, 5, 10
# Each keeps keys and values of its own; whoever leaves in the middle is the last one.
TENANTS = ("t0", "t1", "t2", "left")
KILL_SECONDS = min(60.0, SECONDS / 4)
ADAPTERS = {**KINDS, **{f"small-{rank}": KINDS[f"mlp-{rank}"] for rank in (3, 8, 16, 24)}}
LOG_BYTES = 1 << 20
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
# What a request may be told while something of the server is dead, or it stops.
EXCUSES = {"engine_gone", "not_ready", "queue_full", "stopping"}


@dataclass
class Chaos:
    """What was done to a server, and what was seen.

    Attributes:
        url: Of the server.
        used: Tokens of whole answers, by tenant.
        unsure: Most tokens that may have been charged besides: who hung up, or was broken off.
        answers: Whole answers, each equal to the one computed alone.
        excused: Refusals, by reason.
        faults: What went wrong, in words.
        health: Seconds that `/healthz` took.
        resident: Memory of the server, in MiB.
        log: The end of what its log said while somebody read it.
        over: Set at the end.
    """

    url: str
    used: Counter[str] = field(default_factory=Counter)
    unsure: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    log: bytes = b""
    over: threading.Event = field(default_factory=threading.Event)

    def wire(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=5)

    def again(self, work: Callable[[], None], pause: float) -> threading.Thread:
        """Do something again and again in a thread, whatever becomes of it."""

        def run() -> None:
            while not self.over.wait(pause):
                with suppress(OSError, httpx.HTTPError):
                    work()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def idle(chaos: Chaos) -> None:
    """Strangers who say nothing, half a head, or too much at once."""
    wires = [chaos.wire() for _ in range(100)]
    for number, wire in enumerate(wires):
        if number % 3:
            wire.sendall(b"GET /healthz HT" if number % 3 == 1 else b"GET / HTTP/1.1\r\n\r\n" * 50)
    chaos.over.wait(3)
    for wire in wires:
        wire.close()


def unread(chaos: Chaos) -> None:
    """A tenant who asks for much and reads nothing of it."""
    body = {"model": "micro", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    text = json.dumps({**body, "max_tokens": 200, "logprobs": True, "top_logprobs": 20})
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    more = f"authorization: Bearer sk-laura-rude\r\ncontent-length: {len(text)}\r\n\r\n"
    with chaos.wire() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.sendall((head + more + text).encode())
        chaos.over.wait(5)


def flood(chaos: Chaos) -> None:
    """A tenant with the worst bodies."""
    headers = {**key("rude"), "content-type": "application/json"}
    for make in WORST.values():
        if not chaos.over.is_set():
            httpx.post(f"{chaos.url}{CHAT}", content=make(), headers=headers, timeout=60)


# A process of its own: what the clients' interpreter is busy with is not the server's doing.
MONITOR = """
import http.client, sys, time
client = http.client.HTTPConnection(sys.argv[1].removeprefix("http://"), timeout=30)
while True:
    began = time.monotonic()
    client.request("GET", "/healthz")
    answer = client.getresponse()
    answer.read()
    print(answer.status, time.monotonic() - began, flush=True)
    time.sleep(0.1)
"""


def look(chaos: Chaos, child: subprocess.Popen[str]) -> None:
    """What an operator's monitor does."""
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen([sys.executable, "-c", MONITOR, chaos.url], stdout=told) as monitor,
    ):
        while not chaos.over.wait(0.1):
            status = Path(f"/proc/{child.pid}/status").read_text()
            (line,) = (one for one in status.splitlines() if one.startswith("VmRSS:"))
            chaos.resident.append(int(line.split()[1]) >> 10)
        if monitor.poll() is not None:
            chaos.faults.append("the monitor was not answered")
        monitor.kill()
        monitor.wait()
        told.seek(0)
        rows = [line.split() for line in told if line.endswith("\n")]
    chaos.faults += [f"healthz: {status}" for status, _ in rows if status != "200"]
    chaos.health = [float(seconds) for _, seconds in rows]


async def ask(client: httpx.AsyncClient, chaos: Chaos, one: Asked, who: str, leaves: bool) -> None:
    """Ask as a tenant; leave in the middle, or hold the answer against the one computed alone."""
    path = CHAT if "messages" in one.body else COMPLETE
    body = {"model": one.model, "temperature": 0, **one.body}
    prompt = 2048  # more than any prompt here
    if leaves:
        chaos.unsure[who] += prompt + one.body["max_tokens"]
        async with client.stream(
            "POST", path, json={**body, "stream": True}, headers=key(who)
        ) as it:
            async for _ in it.aiter_lines():
                return
    answer = await client.post(path, json=body, headers=key(who))
    found = answer.json()
    if answer.status_code != 200:
        code = found["error"]["code"]
        chaos.excused[code] += 1
        chaos.unsure[who] += prompt + one.body["max_tokens"]
        if code not in EXCUSES:
            chaos.faults.append(f"{one.model}: {answer.status_code} {answer.text}")
        await asyncio.sleep(0.5)
        return
    choice, usage = found["choices"][0], found["usage"]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    came = (text, choice["finish_reason"], usage["completion_tokens"])
    if came != (right := (one.right.text, one.right.finish, one.right.tokens)):
        chaos.faults.append(f"{one.model}: came {came}, right is {right}")
    chaos.answers += 1
    chaos.used[who] += usage["total_tokens"]


async def crowd(chaos: Chaos, asked: list[Asked], seconds: float) -> None:
    """All clients until the time is over."""
    end = time.monotonic() + seconds

    async def one_client(number: int, client: httpx.AsyncClient) -> None:
        chance, leaves = random.Random(number), number < VANISHING
        who = TENANTS[-1 if leaves else number % (len(TENANTS) - 1)]
        while time.monotonic() < end:
            try:
                await ask(client, chaos, chance.choice(asked), who, leaves)
            except httpx.HTTPError as error:
                chaos.faults.append(f"{who}: {error!r}")

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=chaos.url, timeout=300, limits=limits) as client:
        await asyncio.gather(*(one_client(number, client) for number in range(CLIENTS)))


async def fill_caches(chaos: Chaos, asked: list[Asked]) -> None:
    """Ask everything once as everybody, so that memory is then as high as it may get."""
    queue = [(one, who) for who in TENANTS for one in asked]

    async def one_client(client: httpx.AsyncClient) -> None:
        while queue:
            one, who = queue.pop()
            await ask(client, chaos, one, who, leaves=False)

    async with httpx.AsyncClient(base_url=chaos.url, timeout=300) as client:
        await asyncio.gather(*(one_client(client) for _ in range(CLIENTS)))


def kill_the_templates(child: subprocess.Popen[str]) -> None:
    found = subprocess.run(
        ["pgrep", "-P", str(child.pid), "-f", "serve/confined.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for number in found.stdout.split():
        os.kill(int(number), signal.SIGKILL)


def tenants_database(path: Path) -> str:
    url = f"sqlite:///{path}"
    database = Database(url)
    replace(database, file_of(*(tenant(name, "*") for name in (*TENANTS, "rude")), admin=ADMIN))
    database.close()
    return url


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("engine", ["inprocess", "vllm"])
def test_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(test_soak, "KINDS", ADAPTERS)
    folder = tmp_path / "adapters"
    write_adapters(MICRO_BASE, folder, ADAPTERS)
    asked = all_asked(folder)
    fake = Fake(tmp_path / "fake", monkeypatch, model=True, gpu=True) if engine == "vllm" else None
    words = ["micro", "--adapters", str(folder), "--slots", str(SLOTS), "--precision", "fp32",
             "--database", tenants_database(tmp_path / "laura.db"), "--engine", engine,
             "--grace", str(GRACE_SECONDS),
             "--port", "0", "--json"]  # fmt: skip
    words += ["--device", "cpu"] if fake is None else []
    environment = {**ENVIRONMENT}
    if fake is not None:
        environment |= {name: os.environ[name] for name in ("LAURA_VLLM_PYTHON", "FAKE_VLLM",
                        "FAKE_VLLM_MODEL")}  # fmt: skip
        environment["PYTHONPATH"] += f"{os.pathsep}{fake.place / 'site'}"
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -n 400; exec "$@"', "sh", *command(*words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        try:
            assert child.stdout is not None and child.stderr is not None
            line = child.stdout.readline()
            assert line, child.stderr.read()
            chaos = Chaos(json.loads(line)["url"])
            state = torment(chaos, child, asked, fake)
        finally:
            child.kill()
    report(chaos, engine)
    print(f"stopped with {state['stopped']}")
    assert chaos.faults == [], chaos.log[-3000:]
    check(chaos, state)


def torment(
    chaos: Chaos,
    child: subprocess.Popen[str],
    asked: list[Asked],
    fake: Fake | None,
) -> dict[str, Any]:
    """Everything, then SIGTERM in the middle of it; the state right before."""

    survived = 0  # answers until the last kill

    def kill() -> None:
        """Each engine only once it has served the crowd: a slow machine is not kept at starting."""
        nonlocal survived
        if fake is None:
            kill_the_templates(child)
        elif chaos.answers - survived >= CLIENTS:
            survived = chaos.answers
            with suppress(ProcessLookupError):
                os.kill(fake.log("start")[-1]["pid"], signal.SIGKILL)

    def read_log() -> None:
        """After ten seconds in which nobody reads the log, a second in which somebody does."""
        assert child.stderr is not None
        end = time.monotonic() + 1
        os.set_blocking(child.stderr.fileno(), False)
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                chaos.log = (chaos.log + os.read(child.stderr.fileno(), 1 << 20))[-LOG_BYTES:]

    if fake is None:
        asyncio.run(fill_caches(chaos, asked))
    pests = [
        chaos.again(lambda: idle(chaos), 1), chaos.again(lambda: idle(chaos), 1.7),
        chaos.again(lambda: unread(chaos), 0.5), chaos.again(lambda: flood(chaos), 0.1),
        chaos.again(kill, KILL_SECONDS), chaos.again(read_log, 10),
    ]  # fmt: skip
    monitor = threading.Thread(target=look, args=(chaos, child))
    monitor.start()
    try:
        asyncio.run(crowd(chaos, asked, SECONDS))
    finally:
        chaos.over.set()
        for one in (*pests, monitor):
            one.join(60)
    with httpx.Client(base_url=chaos.url, headers={"authorization": f"Bearer {ADMIN}"}) as client:
        for _ in range(100):
            state: dict[str, Any] = client.get("/admin/state", timeout=30).json()
            if not state["running"] and not state["waiting"]:
                break
            time.sleep(0.2)
    last = Chaos(chaos.url)
    thread = threading.Thread(target=lambda: asyncio.run(crowd(last, asked, 3)))
    thread.start()
    time.sleep(1.5)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    code = child.wait(GRACE_SECONDS + 20)
    state["stopped"] = {"code": code, "seconds": time.monotonic() - began}
    thread.join(60)
    # Whose connection is ended by the stop hears nothing; all else is as before.
    chaos.faults += [one for one in last.faults if "Error(" not in one]
    return state


def report(chaos: Chaos, engine: str) -> None:
    chaos.health.sort()
    asked, count = len(chaos.health), len(chaos.resident)
    quarters = [chaos.resident[count * part // 4 : count * (part + 1) // 4] for part in range(4)]
    print(
        f"\n{engine}: {chaos.answers} answers equal to those computed alone, "
        f"{dict(chaos.excused)} refused, {len(chaos.faults)} faults\n"
        f"healthz of {asked}: median {chaos.health[asked // 2]:.3f} s, "
        f"99 % {chaos.health[asked * 99 // 100]:.3f} s, longest {chaos.health[-1]:.3f} s\n"
        f"memory, median of each quarter: {[statistics.median(one) for one in quarters]} MiB"
    )


def check(chaos: Chaos, state: dict[str, Any]) -> None:
    """Nothing is wrong, lost or charged wrongly; memory is flat; others hardly notice."""
    assert chaos.answers > CLIENTS
    for name, usage in state["tenants"].items():
        if name != "rude":
            low, high = chaos.used[name], chaos.used[name] + chaos.unsure[name]
            assert low <= usage["tokens"] <= high, name
            assert usage["running"] == 0
    assert state["cache_tokens"] == 0 and all(not one["in_use"] for one in state["slots"])
    assert state["stopped"]["code"] == 0 and state["stopped"]["seconds"] < GRACE_SECONDS + 10
    quarter = len(chaos.resident) // 4
    third, last = chaos.resident[2 * quarter : 3 * quarter], chaos.resident[3 * quarter :]
    assert statistics.median(last) - statistics.median(third) < 48, "MiB"
    # Two processors, of which the clients and the strangers have half.
    assert chaos.health[len(chaos.health) * 99 // 100] < 0.2
