"""Runs on the machines of a Ray cluster: the same study, whatever is lost on the way."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from laura.cli import app as cli
from laura.recipe.reading import parse_recipe
from laura.results.errors import EXIT_INTERRUPTED, EXIT_USER, StoreError
from laura.results.store import read_json
from laura.study import workers
from laura.study.opening import open_study
from laura.study.session import Session
from laura.study.sharing import beacon
from laura.study.workers import Crew
from tests.study.carried_out import ROOT, command, compare
from tests.study.conftest import one_thread
from tests.study.test_sharing import steps_are_taken_once

# ----- addresses -----


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused before Ray is asked is refused with any Ray."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))


def refused(address: str, out: Path) -> str:
    """What `laura compare --ray` says and ends with, before anything is begun."""
    words = ["compare", "micro-small", "--out", str(out), "--ray", address]
    ended = CliRunner().invoke(cli.app, words)
    assert ended.exit_code == EXIT_USER and not out.exists()
    text = ended.stderr.strip()
    assert "\n" not in text
    return text


@pytest.mark.parametrize("address", ["node7", "http://node7:6379", "node7:", "ray://node7", ""])
def test_an_address_that_is_none(address: str, tmp_path: Path, stand_in: None) -> None:
    assert "takes auto, HOST:PORT or ray://HOST:PORT" in refused(address, tmp_path / "s")


def test_without_ray_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "python -m pip install 'laura-lab[ray]'" in refused("auto", tmp_path / "s")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_nobody_answers_at_an_address(form: str, tmp_path: Path, stand_in: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets it, and it does not listen
        said = refused(form.format(taken.getsockname()[1]), tmp_path / "s")
    assert "no Ray cluster answers at" in said and "refused" in said


def test_what_answers_is_no_ray(tmp_path: Path, stand_in: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as line:
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        talk = threading.Thread(target=answer)
        talk.start()
        said = refused(f"127.0.0.1:{server.getsockname()[1]}", tmp_path / "s")
        talk.join()
    assert "does not speak gRPC" in said


# ----- seats that are lost -----


class FakeWorker:
    """A seat of a cluster that does as it was told in `fates`, one after the other."""

    fates: list[str]
    orders: list[Any]

    def __init__(self, setup: bytes, gpus: int) -> None:
        self._fate = FakeWorker.fates.pop(0) if FakeWorker.fates else "waits"
        self.ended = False

    def ready(self) -> bool:
        return self._fate != "waits"

    def say(self, value: bytes) -> None:
        FakeWorker.orders.append(pickle.loads(value))

    def hear(self) -> dict[str, Any]:
        time.sleep(0.05)  # so long that another one begins too
        return {"ended": "is gone"} if self._fate == "lost" else {"done": ["done"]}

    def interrupt(self) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A crew of two seats of a cluster, made of what stands in the list."""

    def make(*fates: str) -> Crew:
        FakeWorker.fates, FakeWorker.orders = list(fates), []
        said: list[str] = []
        bench = SimpleNamespace(device_name="cpu", step_aside=lambda: None)
        session: Any = SimpleNamespace(
            recipe=None, store=SimpleNamespace(folder=tmp_path), data_dir=None, bench=bench,
            arithmetic=[], progress=SimpleNamespace(say=said.append), said=said,
            engines=SimpleNamespace(close=lambda: None),
        )  # fmt: skip
        return Crew(session, 2, ray=True)

    monkeypatch.setattr(workers, "RayWorker", FakeWorker)
    monkeypatch.setattr(workers, "room", lambda gpus: 7)
    monkeypatch.setattr(workers, "ROOM_SECONDS", 0.5)
    return make


def carry_out(crew: Crew, count: int) -> tuple[list[Any], Any]:
    """Hand out so many pieces of work; what was done of them, and what was said."""
    left, done = list(range(count)), list[Any]()

    def work(carry: Any) -> None:
        while left:
            one = left.pop()
            assert carry([one], None) == ["done"]
            done.append(one)

    with crew:
        crew.share(work, count)
    return sorted(done), crew.session.said  # type: ignore[attr-defined]


def test_what_a_lost_seat_was_at_is_done_by_another_one(crew: Any) -> None:
    done, said = carry_out(crew("works", "lost", "works"), 5)
    assert done == [0, 1, 2, 3, 4] and len(FakeWorker.orders) == 6
    assert len(said) == 1 and said[0].endswith("is gone; its work goes on elsewhere")


def test_a_seat_that_never_comes_back_is_done_without(crew: Any) -> None:
    """A machine is lost and the cluster has no room for another: the other one does it all."""
    assert carry_out(crew("works", "lost"), 5)[0] == [0, 1, 2, 3, 4]


def test_work_that_loses_every_seat_is_given_up(crew: Any) -> None:
    with pytest.raises(StoreError, match=r"is gone; 3 in a row were lost.*same command continues"):
        carry_out(crew(*["lost"] * 9), 1)
    assert len(FakeWorker.orders) == 3


def test_a_cluster_without_room_is_not_waited_for_without_end(crew: Any) -> None:
    with pytest.raises(StoreError, match=r"no room for a single run in 0\.5 s.*ray status"):
        carry_out(crew(), 2)


def test_what_does_not_fit_on_the_other_machine_is_told(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker under a beacon: its arithmetic is the command's, its study the command's."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    recipe = parse_recipe(recipe_text)
    with open_study(recipe, tmp_path / "s", None, "cpu") as session:
        with beacon(session.store.folder) as place:
            crew = Crew(session, 1)
            crew._beacon = place
            other = property(lambda _: ["torch.bfloat16", "torch.float32"])
            monkeypatch.setattr(Session, "arithmetic", other)
            seat = crew.hire()
            with pytest.raises(StoreError, match=r"torch\.bfloat16 and .*train\.precision.*\(on "):
                seat.carry_out([], None)
            seat.worker.end()
        seat = crew.hire()
        with pytest.raises(StoreError, match=r"not the command's study folder.*\(on "):
            seat.carry_out([], None)
        seat.worker.end()


# ----- a cluster of two nodes on this machine -----

NODES = """
import os, sys, tempfile
with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as place:
    os.environ |= {"RAY_TMPDIR": place, "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
             "health_check_failure_threshold": 4}
    head = {**small, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(**small)
    print(cluster.address, node.all_processes["raylet"][0].process.pid, flush=True)
    sys.stdin.read()
    cluster.shutdown()
"""


@pytest.fixture
def cluster() -> Iterator[tuple[str, int]]:
    """Address of a cluster of two nodes with a core each, and the process that is the second."""
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NODES], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    address, node = process.stdout.readline().split()
    yield address, int(node)
    process.communicate(timeout=60)


class Watched:
    """A command, and how many steps of its runs are on the disk from moment to moment."""

    def __init__(self, one: dict[str, Any], study: Path, said: Path) -> None:
        self._study = study
        with said.open("wb") as file:
            self.process = subprocess.Popen(**one, stdout=file, stderr=file)
        self._before = self._each()
        self.steps = [self._taken()]

    def _each(self) -> dict[Path, int]:
        files = self._study.glob("runs/*/metrics.jsonl")
        return {path: len(path.read_bytes().splitlines()) for path in files}

    def _taken(self) -> int:
        return sum(self._each().values())

    @property
    def going(self) -> int:
        """How many runs have gone on since."""
        return sum(steps > self._before.get(path, 0) for path, steps in self._each().items())

    def wait(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not enough():
            assert time.monotonic() < deadline
            time.sleep(0.02)
            self.steps.append(self._taken())

    @property
    def most_lost(self) -> int:
        """Steps that were taken back at once: what was not yet saved when something was lost."""
        return max(before - after for before, after in pairwise(self.steps))


@pytest.mark.slow
def test_a_stop_and_a_lost_node_change_nothing(
    recipe_text: str, cluster: tuple[str, int], tmp_path: Path
) -> None:
    """Ctrl-C while both nodes train; then the same command, and a node is killed."""
    text = recipe_text.replace("[600, 1200]", "[5000]").replace("seeds: [0, 1]", "seeds: [0]")
    (tmp_path / "recipe.yaml").write_text(text)
    address, node = cluster
    study, said = tmp_path / "study", tmp_path / "said"
    one = command("compare", tmp_path / "recipe.yaml", "--out", study, "--ray", address)

    first = Watched(one, study, said)
    first.wait(lambda: len([*study.glob("runs/*/resume/*")]) == 2 and first.steps[-1] > 20)
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(60) == EXIT_INTERRUPTED, said.read_text()
    assert not [*study.glob(".seats.*")]

    second = Watched(one, study, said)
    # Both nodes are at work: a killed one that had none would not be missed.
    second.wait(lambda: second.going == 2 and second.steps[-1] > second.steps[0] + 20)
    # A machine is lost with all that runs on it, else a short run might still end there.
    lost = psutil.Process(node)
    for process in (*lost.children(recursive=True), lost):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    second.wait(lambda: second.process.poll() is not None)
    assert second.process.returncode == 0, said.read_text()
    assert "its work goes on elsewhere" in said.read_text()
    assert second.steps[0] >= 20 and second.most_lost <= 2, "runs go on from where they were saved"
    assert steps_are_taken_once(study)
    with one_thread():
        alone = compare(parse_recipe(text), study=tmp_path / "alone", device="cpu")
    assert read_json(study / "summary.json") == alone
