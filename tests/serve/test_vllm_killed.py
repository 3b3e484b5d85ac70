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
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serve.test_vllm import World, alive, make_adapter, run, until

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


@contextmanager
def door(
    base: Path, library: Path, world: World, temporary: Path
) -> Iterator[subprocess.Popen[str]]:
    """A running command; it is killed at the end, if it is not before."""
    words = ["-m", "laura", "serve", str(base), "--adapters", str(library)]
    with subprocess.Popen(
        [sys.executable, *words, "--engine", "vllm", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "LAURA_VLLM_PYTHON": sys.executable,
            "PYTHONPATH": f"{world.place / 'site'}{os.pathsep}{ROOT}",
            "STAND_IN": str(world.place),
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


def gone(world: World, temporary: Path) -> bool:
    running = [entry["pid"] for entry in world.log("start") if alive(entry["pid"])]
    return not running and not list(temporary.iterdir())


def test_killed_while_it_serves(
    tiny_folder: Path, library: Path, tmp_path: Path, temporary: Path
) -> None:
    world = World(tmp_path)
    with door(tiny_folder, library, world, temporary) as child:
        place = url(child)
        assert httpx.post(f"{place}/admin/adapters/one/load", timeout=60).status_code == 200
        copies = list(temporary.glob("laura-*/adapters/*/adapter_model.safetensors"))
        sockets = list(temporary.glob("laura-*/*.sock"))
        assert len(copies) == 1 and len(sockets) == 1, "there is something to leave behind"
        child.kill()
        child.wait()
        run(until(lambda: gone(world, temporary)))


@pytest.mark.parametrize("moment", ["starts", "waits for vLLM"])
def test_killed_while_it_starts_or_waits(
    tiny_folder: Path, library: Path, tmp_path: Path, temporary: Path, moment: str
) -> None:
    world = World(tmp_path)
    world.faults(slow=300 if moment == "starts" else 0)
    with door(tiny_folder, library, world, temporary) as child:
        if moment != "starts":
            url(child)
            world.faults(exit=True)
            os.kill(world.log("start")[0]["pid"], signal.SIGKILL)
            run(until(lambda: len(world.log("start")) == 3, 60))
        run(until(lambda: bool(world.log("start")), 60))
        assert len(list(temporary.glob("laura-*"))) == 1
        child.kill()
        child.wait()
        run(until(lambda: gone(world, temporary)))


def test_stopped_in_order(
    tiny_folder: Path, library: Path, tmp_path: Path, temporary: Path
) -> None:
    world = World(tmp_path)
    with door(tiny_folder, library, world, temporary) as child:
        url(child)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
        assert gone(world, temporary), "at once, not some time later"
