"""Engines and a gate as processes: one killed under load, one stopped, every answer right."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from laura.models.registry import MICRO_BASE
from laura.serve.database import Database
from laura.serve.tenant_changes import replace
from tests.serve.alone import Alone, Answer, Kind, write_adapters
from tests.serve.houses import file_of, key, tenant, until
from tests.serve.pools import KEY
from tests.serve.real_server import ENVIRONMENT, RealServer, command, serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
KINDS = {f"rank-{rank}": Kind(rank) for rank in (1, 2, 4, 8)}
TENANTS = ("ann", "bob", "cid")
TIE = 1e-3  # as in test_soak.py
FP32 = ("--precision", "fp32", "--device", "cpu")


@dataclass(frozen=True)
class Asked:
    tenant: str
    model: str
    prompt: str
    right: Answer


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Asked]]:
    """Adapters, and what is asked of them, with the answers that transformers and PEFT give."""
    folder = tmp_path_factory.mktemp("work")
    write_adapters(MICRO_BASE, folder / "adapters", KINDS)
    (folder / "key").write_text(KEY)
    database = Database(f"sqlite:///{folder / 'laura.db'}")
    replace(database, file_of(*(tenant(name, "*") for name in TENANTS)))
    database.close()
    alone = Alone(MICRO_BASE, folder / "adapters", list(KINDS))
    asked = []
    for number in range(60):
        name = (None, *KINDS)[number % 5]
        prompt = f"{'Once Beno carried Uma because '[: 8 + number % 20]} {number}"
        right = alone.complete(name, prompt, 40)
        if right.margin > TIE:
            asked.append(Asked(TENANTS[number % 3], name or "micro", prompt, right))
    assert len(asked) > 50
    return folder, asked


def engine(work: Path, port: int = 0) -> Any:
    """One with a single slot: what needs another adapter waits, so that some have not begun."""
    words = ("--headless", "--adapters", str(work / "adapters"), "--slots", "1", *FP32)
    return serving("micro", *words, "--engine-key-file", str(work / "key"), port=port)


def gate(work: Path, *engines: RealServer) -> Any:
    backends = [word for one in engines for word in ("--backend", one.url)]
    words = ("--adapters", str(work / "adapters"), "--database", f"sqlite:///{work / 'laura.db'}")
    return serving("micro", *words, *backends, "--engine-key-file", str(work / "key"))


async def all_asked(url: str, asked: list[Asked], then: Callable[[], None]) -> list[httpx.Response]:
    """Everything at once; something happens when the first answers have come."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(wanted: Asked) -> httpx.Response:
            body = {"model": wanted.model, "prompt": wanted.prompt, "max_tokens": 40}
            body |= {"temperature": 0, "add_special_tokens": False}
            return await client.post("/v1/completions", json=body, headers=key(wanted.tenant))

        tasks = [asyncio.create_task(one(wanted)) for wanted in asked]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        then()
        return list(await asyncio.gather(*tasks))


def wrong(asked: list[Asked], answers: list[httpx.Response]) -> list[Any]:
    """Whole answers that are not the right ones."""
    found = []
    for wanted, answer in zip(asked, answers, strict=True):
        if answer.status_code == 200:
            choice, usage = answer.json()["choices"][0], answer.json()["usage"]
            came = (choice["text"], choice["finish_reason"], usage["completion_tokens"])
            right = (wanted.right.text, wanted.right.finish, wanted.right.tokens)
            found += [] if came == right else [(wanted, came)]
    return found


def ready(url: str) -> dict[str, str]:
    found: dict[str, str] = httpx.get(f"{url}/readyz").json()
    return found


def test_a_killed_engine_and_a_stopped_one(work: tuple[Path, list[Asked]]) -> None:
    folder, asked = work
    with ExitStack() as stack:
        first, second = (stack.enter_context(engine(folder)) for _ in range(2))
        door = stack.enter_context(gate(folder, first, second))
        assert ready(door.url) == {"status": "ready"}
        before = asyncio.run(all_asked(door.url, asked, lambda: None))
        assert [one.status_code for one in before] == [200] * len(asked)
        assert wrong(asked, before) == []

        killed = asyncio.run(all_asked(door.url, asked, first.child.kill))
        first.child.wait()
        assert wrong(asked, killed) == []
        lost = [one for one in killed if one.status_code != 200]
        assert {one.json()["error"]["code"] for one in lost} <= {"engine_gone"}
        assert len(lost) < len(asked) / 2
        gone = {one.headers["x-request-id"] for one in lost}
        assert ready(door.url) == {"status": "ready", "detail": "1 of 2 engines answer"}
        metrics = httpx.get(f"{door.url}/metrics", headers=key("admin")).text
        assert f'laura_engine_ready{{engine="{first.url}"}} 0.0' in metrics
        assert f'laura_engine_ready{{engine="{second.url}"}} 1.0' in metrics

        alone = asyncio.run(all_asked(door.url, asked, lambda: None))
        assert {one.status_code for one in alone} == {200} and wrong(asked, alone) == []

        port = int(first.url.rpartition(":")[2])
        stack.enter_context(engine(folder, port))
        until(lambda: ready(door.url) == {"status": "ready"}, seconds=40)
        stop = lambda: second.child.send_signal(signal.SIGTERM)  # noqa: E731
        drained = asyncio.run(all_asked(door.url, asked, stop))
        assert {one.status_code for one in drained} == {200} and wrong(asked, drained) == []
        assert second.child.wait(60) == 0

        last: list[httpx.Response] = []
        stop = lambda: door.child.send_signal(signal.SIGTERM)  # noqa: E731
        last = asyncio.run(all_asked(door.url, asked, stop))
        # A stopping gate sends away whoever it had not read yet, and nobody else.
        late = [one for one in last if one.status_code != 200]
        assert {one.json()["error"]["code"] for one in late} <= {"stopping", "engine_gone"}
        assert len(late) < len(asked) and wrong(asked, last) == []
        unheard = {one.headers["x-request-id"] for one in late}
        assert door.child.wait(60) == 0
    logged = [json.loads(line) for line in door.log if line.startswith("{")]
    told = {line["request_id"]: line["first_token_ms"] for line in logged}
    assert all(told[one] is not None for one in gone), "only who had begun to answer is told so"
    assert all(told[one] is None for one in unheard), "whoever had begun is answered to the end"


def test_what_a_gate_and_an_engine_refuse(tmp_path: Path) -> None:
    file, short = tmp_path / "key", tmp_path / "short"
    file.write_text(KEY)
    short.write_text("secret")
    shared = ("--engine-key-file", str(file))
    backend = ("--backend", "http://127.0.0.1:9")
    for words, told in (
        (("--headless",), "--engine-key-file FILE belongs"),
        (backend, "--engine-key-file FILE belongs"),
        (shared, "--engine-key-file FILE belongs"),
        (("--headless", "--engine-key-file", str(short)), "openssl rand -hex 32"),
        (
            ("--headless", *shared, "--database", "sqlite:///x", "--timeout", "5"),
            "--database, --timeout has",
        ),
        (("--headless", *shared, *backend), "--backend has no effect with --headless"),
        ((*backend, *shared, "--slots", "3", "--no-drafts"), "--drafts, --slots has no effect"),
        ((*backend, *backend, *shared), "named twice"),
        (("--backend", "https://x:1", *shared), "http://HOST:PORT"),
        (("--backend", "http://x:99999", *shared), "http://HOST:PORT"),
        ((*backend, *shared, "--host", "0.0.0.0"), "--database"),
    ):
        done = subprocess.run(
            command("micro", *words, "--port", "0"), env=ENVIRONMENT,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and told in done.stderr, done.stderr


def test_a_gate_of_another_base_ends_with_2(
    work: tuple[Path, list[Asked]], tiny_folder: Path
) -> None:
    folder, _ = work
    with engine(folder) as one:
        words = ("--backend", one.url, "--engine-key-file", str(folder / "key"), "--port", "0")
        done = subprocess.run(
            command(str(tiny_folder), *words), env=ENVIRONMENT,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and "another base" in done.stderr, done.stderr
