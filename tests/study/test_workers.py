"""Runs side by side in processes: the same study, and nothing lost however they end."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from laura.cli.progress import PlainLines
from laura.recipe.reading import parse_recipe
from laura.results.errors import CheckpointError, LauraError, StoreError
from laura.results.progress import SILENT
from laura.results.store import read_json
from laura.study import workers
from laura.study.opening import open_study
from laura.study.runs import specs_of
from laura.study.seats import WorkerProcess
from laura.study.worker import SentProgress, _Messages
from laura.study.workers import Crew, choose_workers
from tests.study.carried_out import ROOT, command, compare, finish, kill_at_random
from tests.study.conftest import RECIPE, damaged_copy


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the machine, so that a run in a worker rounds as one in this process does.
    monkeypatch.setattr(workers, "threads", lambda: 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="module")
def side_by_side(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path
) -> Any:
    """A study carried out by two workers, its recipe and what they said."""
    text = RECIPE.format(model=tiny_folder, folder=tiny_data)
    recipe = parse_recipe(text)
    folder = tmp_path_factory.mktemp("study") / "two"
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "threads", lambda: 1)
        patch.setenv("PYTHONPATH", str(ROOT))
        summary = compare(recipe, study=folder, workers=2, progress=heard)
    return recipe, folder, summary, heard


class Heard:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: list[str] = []
        self.advanced: dict[str, float] = {}

    def bar(self, title: str, total: float, unit: str = "") -> Any:
        self.bars.append(title)
        heard = self

        class Bar:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def advance(self, amount: float = 1.0) -> None:
                heard.advanced[title] = heard.advanced.get(title, 0.0) + amount

            def note(self, text: str) -> None:
                pass

        return Bar()

    def say(self, text: str) -> None:
        self.said.append(text)


def test_workers_make_the_study_that_one_process_makes(side_by_side: Any, finished: Any) -> None:
    _, _, summary, _ = side_by_side
    assert summary == finished[2]


def test_their_progress_is_shown_and_adds_up(side_by_side: Any) -> None:
    _, folder, _, heard = side_by_side
    assert heard.advanced["study"] == 16
    training = [title for title in heard.bars if title.startswith("training ")]
    # Four rates with two seeds; each budget is a run.
    assert len(training) == 16
    assert heard.advanced["training full at 0.001"] >= 600 + 1200
    assert any("lora, rate 0.01, seed 0" in text for text in heard.said)
    timing = json.loads((folder / "timing.json").read_text())
    assert (timing["workers"], timing["runs"], timing["runs_before"]) == (2, 16, 0)


def test_a_bar_whose_work_was_stopped_does_not_say_that_it_has_finished() -> None:
    stream, times, said = io.BytesIO(), itertools.count(0, 100), list[str]()
    sent = SentProgress(_Messages(stream))
    with sent.bar("kept", 10, "tokens") as bar:
        bar.advance(10)
    with pytest.raises(KeyboardInterrupt), sent.bar("stopped", 10, "tokens"):
        raise KeyboardInterrupt
    shown = PlainLines(said.append, clock=lambda: float(next(times)))
    nobody: Any = None
    there = workers._Seat(nobody, shown)
    stream.seek(0)
    with suppress(EOFError):
        while True:
            there._report(pickle.load(stream))
    assert there._bars == {}
    assert [text for text in said if "kept: finished in" in text]
    assert not [text for text in said if "stopped: finished" in text]


def test_a_study_with_workers_is_locked_against_another_recipe(side_by_side: Any) -> None:
    recipe, folder, _, _ = side_by_side
    other = recipe.model_copy(update={"seeds": [5]})
    with open_study(recipe, folder, None, None) as session, Crew(session, 2) as crew:
        crew.carry_out(specs_of(session.recipe, "full", 1e-3, 0), SILENT.bar("", 1).__enter__())
        with (
            pytest.raises(StoreError, match="on another recipe"),
            open_study(other, folder, None, None),
        ):
            pass
        with open_study(recipe, folder, None, None) as joined:
            assert session.alone and not joined.alone
    with open_study(other, folder, None, None) as session:
        assert session.alone
    with open_study(recipe, folder, None, None):
        pass


def test_what_stops_a_worker_is_told_as_it_would_be_here(side_by_side: Any, tmp_path: Path) -> None:
    recipe, folder, summary, _ = side_by_side
    copy = damaged_copy(folder, summary, tmp_path)
    with pytest.raises(CheckpointError, match=r"SHA-256.*give the same command again"):
        compare(recipe, study=copy, workers=2)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_and_the_rest_is_kept(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[workers._Seat] = []
    original = workers._Seat._report

    def killed(self: workers._Seat, message: dict[str, Any]) -> None:
        if "title" in message and not started:
            started.append(self)
            assert isinstance(self.worker, WorkerProcess)
            self.worker._process.kill()
        original(self, message)

    monkeypatch.setattr(workers._Seat, "_report", killed)
    recipe = parse_recipe(recipe_text, ["seeds=[0]"])
    with pytest.raises(StoreError, match=r"ended by signal SIGKILL.*fewer --workers"):
        compare(recipe, study=tmp_path / "s", workers=2)
    summary = compare(recipe, study=tmp_path / "s", workers=2)
    assert len(summary["points"]) == 8


def test_an_idle_worker_ends_when_nobody_talks_to_it(side_by_side: Any) -> None:
    recipe, folder, _, _ = side_by_side
    with open_study(recipe, folder, None, None) as session:
        worker = Crew(session, 2).hire().worker
        assert isinstance(worker, WorkerProcess)
        assert worker._process.stdin is not None
        worker._process.stdin.close()
        assert worker._process.wait(60) == 0
        worker.end()


def test_workers_are_chosen_by_size(recipe_text: str, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text)
    with open_study(recipe, tmp_path / "s", None, "cpu") as session:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "threads", lambda: 4)
            assert choose_workers(session) == 4
            patch.setattr(workers, "SMALL", 1000)
            assert choose_workers(session) == 1


def test_each_worker_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA one worker a device, in turn; the command itself leaves its own to them."""
    hired: list[Any] = []

    class Worker:
        def __init__(self, setup: bytes, *_: Any) -> None:
            hired.append(pickle.loads(setup)["study"]["device"])

        interrupt = end = lambda _: None

    aside: list[str] = []
    bench = SimpleNamespace(device_name=None, step_aside=lambda: aside.append("aside"))
    bench.base = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda")))
    bench.base.model.parameters = lambda: iter([torch.zeros(3)])
    session: Any = SimpleNamespace(
        recipe=SimpleNamespace(train=SimpleNamespace(devices=1)),
        store=SimpleNamespace(folder=None), data_dir=None, bench=bench, lock=None,
        progress=None, arithmetic=None,
        engines=SimpleNamespace(close=lambda: aside.append("engines closed")),
    )  # fmt: skip
    monkeypatch.setattr(workers, "worker_devices", lambda _: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(workers, "WorkerProcess", Worker)
    assert choose_workers(session) == 2
    with Crew(session, 3) as crew:
        crew.share(lambda carry: None, 5)
    assert hired == ["cuda:0", "cuda:1", "cuda:0"]
    assert aside == ["aside", "engines closed"]


@pytest.mark.parametrize("kind", ["CheckpointError", "StoreError", "DataError", "RecipeError"])
def test_errors_keep_their_kind(kind: str) -> None:
    found = workers._error(kind, "words")
    assert str(found) == "words"
    assert type(found).__name__ == ("RuntimeError" if kind == "RecipeError" else kind)
    assert isinstance(found, LauraError) == (kind != "RecipeError")
    for memory in ("MemoryError", "OutOfMemoryError"):
        assert isinstance(workers._error(memory, ""), MemoryError)
    assert type(workers._error("KeyError", "where")) is RuntimeError


@pytest.mark.slow
def test_killed_at_random_moments_leaves_no_worker_and_gives_the_same_summary(
    side_by_side: Any, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Three SIGKILLs of the command, one SIGTERM, then the same command to its end."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_folder, folder=tiny_data))
    study = tmp_path / "study"
    one = command("compare", tmp_path / "recipe.yaml", "--out", study, "--workers", 2)
    for seed, number in enumerate([signal.SIGKILL] * 3 + [signal.SIGTERM]):
        kill_at_random([one], lambda: bool([*study.glob("runs/*/run.json")]), seed, number=number)
        _wait_for_workers(study)
    finish(one)
    assert read_json(study / "summary.json") == side_by_side[2]


def _wait_for_workers(study: Path) -> None:
    """The lock is free only when no worker lives any more."""
    import fcntl

    deadline = time.monotonic() + 20
    with (study / ".lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                assert time.monotonic() < deadline, "a worker outlived its command"
                time.sleep(0.1)
