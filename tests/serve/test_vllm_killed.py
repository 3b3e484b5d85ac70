"""`laura serve --engine vllm` as a command that is killed: nothing of it stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.models.test_vllm_engine import Fake, alive
from tests.serve.test_vllm import make_adapter, run, until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a path that is short enough for sockets."""
    place = Path(tempfile.mkdtemp(prefix="t-"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def library(tiny_folder: Path, tmp_path: Path) -> Path:
    make_adapter(tiny_folder, tmp_path / "library" / "one", 2)
    return tmp_path / "library"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path / "fake", monkeypatch)


@contextmanager
def door(base: Path, library: Path, fake: Fake, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A running command; it is killed at the end, if it is not before."""
    words = ["-m", "laura", "serve", str(base), "--adapters", str(library)]
    with subprocess.Popen(
        [sys.executable, *words, "--engine", "vllm", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{fake.place / 'site'}{os.pathsep}{ROOT}",
            "TMPDIR": str(temporary),
        },
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def url(child: subprocess.Popen[str]) -> str:
    """Where it listens, once it is ready."""
    assert child.stdout is not None
    told: str = json.loads(child.stdout.readline())["url"]
    return told


def gone(fake: Fake, temporary: Path) -> bool:
    return not any(map(alive, fake.pids())) and not list(temporary.iterdir())


def load_the_adapter(child: subprocess.Popen[str]) -> None:
    """Wait until it is ready, and have it load the library's one adapter."""
    answer = httpx.post(f"{url(child)}/admin/adapters/one/load", timeout=60)
    assert answer.status_code == 200


def listening(pid: int) -> set[str]:
    """Addresses at which a process listens, as Linux writes them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    rows = [
        line.split()
        for table in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[9] in inodes and row[3] in ("0A", "07")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into Linux's /proc")
def test_nothing_but_the_door_can_be_reached(
    tiny_folder: Path, library: Path, fake: Fake, temporary: Path
) -> None:
    """vLLM's own server has routes that load files, run profilers and take weights."""
    with door(tiny_folder, library, fake, temporary) as child:
        load_the_adapter(child)
        workers = fake.pids()
        assert len(listening(child.pid)) == 1 and len(workers) == 2
        assert not any(map(listening, workers))
        (worker,) = {entry["pid"] for entry in fake.log("start")}
        told = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        assert b"VLLM_ALLOW_INSECURE_SERIALIZATION=0" in told
        child.kill()
        child.wait()
        run(until(lambda: gone(fake, temporary)))


def test_killed_while_it_serves(
    tiny_folder: Path, library: Path, fake: Fake, temporary: Path
) -> None:
    with door(tiny_folder, library, fake, temporary) as child:
        load_the_adapter(child)
        copies = list(temporary.glob("laura-*/*/adapter_model.safetensors"))
        assert len(copies) == 1, "there is something to leave behind"
        child.kill()
        child.wait()
        run(until(lambda: gone(fake, temporary)))


@pytest.mark.parametrize("moment", ["starts", "waits for vLLM"])
def test_killed_while_it_starts_or_waits(
    tiny_folder: Path, library: Path, fake: Fake, temporary: Path, moment: str
) -> None:
    fake.faults(slow=300 if moment == "starts" else 0)
    with door(tiny_folder, library, fake, temporary) as child:
        if moment != "starts":
            url(child)
            fake.faults(exit=True)
            os.kill(fake.log("start")[0]["pid"], signal.SIGKILL)
            run(until(lambda: len(fake.log("start")) == 3, 60))
        run(until(lambda: bool(fake.log("start")), 60))
        child.kill()
        child.wait()
        run(until(lambda: gone(fake, temporary)))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_order(
    tiny_folder: Path, library: Path, fake: Fake, temporary: Path, end: signal.Signals
) -> None:
    with door(tiny_folder, library, fake, temporary) as child:
        url(child)
        child.send_signal(end)
        assert child.wait(60) == (0 if end is signal.SIGTERM else 130)
        assert gone(fake, temporary), "at once, not some time later"
