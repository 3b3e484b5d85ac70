"""A study told to trackers: each library's own reader finds what the folder holds."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import laura
from laura.cli.app import app
from laura.results.errors import MissingExtraError, UsageError
from laura.results.store import StudyStore
from laura.results.task_result import TaskResult, change
from laura.study.trackers import TRACKERS, Row
from laura.study.tracking import Mirror, tracked
from tests.study.conftest import RECIPE, one_thread


class Kept:
    """A tracker that keeps what it is told; `broken` raises instead."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.states: dict[str, list[str]] = {}
        self.answers: list[tuple[str, list[str]]] = []
        self.broken = False

    def connect(self, name: str, folder: Path) -> Kept:
        return self

    def open(self, run: str, title: str, settings: Mapping[str, Any]) -> Any:
        if self.broken:
            raise ConnectionError("nobody answers")
        return SimpleNamespace(
            log=self.rows.setdefault(run, []).extend,
            close=self.states.setdefault(run, []).append,
        )

    def conclude(self, answer: str, figures: Sequence[Path]) -> None:
        self.answers.append((answer, [figure.name for figure in figures]))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    made = Kept()
    monkeypatch.setitem(sys.modules, "tests.kept_tracker", made)  # type: ignore[arg-type]
    monkeypatch.setitem(TRACKERS, "kept", "tests.kept_tracker")
    return made


@pytest.fixture
def study(finished: Any, tmp_path: Path) -> StudyStore:
    shutil.copytree(finished[1], tmp_path / "tiny")
    return StudyStore(tmp_path / "tiny")


def expected(store: StudyStore, run: str) -> list[tuple[str, int, float]]:
    """What a run's files say, read by a plain loop."""
    found = []
    own = store.run(run)
    for row in own.metrics():
        leg = row["leg"] if row["leg"].startswith("branch") else "train"
        found.append((f"{leg}/loss", row["step"], row["loss"]))
    for side, task in (("learning", "target_loss"), ("forgetting", "source_loss")):
        base = TaskResult.read(store.base_evaluation(task))
        for file in own.folder.glob(f"evals/*/{task}.json"):
            result, step = TaskResult.read(file), int(file.parent.name)
            metric = result.metrics["nats_per_token"]
            moved = change(base, result, "nats_per_token")
            name = f"{side}/{task}"
            found += [(name, step, metric.value), (f"{name}/stderr", step, metric.stderr)]
            found += [(f"{name}/change", step, moved.value)]
    return found


def missing(told: Sequence[Row], wanted: Sequence[tuple[str, int, float]]) -> set[Any]:
    return set(wanted) - {(name, step, value) for step, row in told for name, value in row.items()}


def test_all_is_told_once(study: StudyStore, kept: Kept) -> None:
    Mirror(study.folder, "kept").end(concluded=True)
    assert set(kept.rows) == {run.folder.name for run in study.runs()}
    for run, told in kept.rows.items():
        assert not missing(told, expected(study, run))
        assert kept.states[run] == ["done"]
    steps = {run: len(told) for run, told in kept.rows.items()}
    [(answer, figures)] = kept.answers
    assert answer == laura.read_study(study.folder).answer
    assert set(figures) <= {"tradeoff.png", "learning_curves.png"}
    Mirror(study.folder, "kept").end(concluded=False)
    assert {run: len(told) for run, told in kept.rows.items()} == steps
    assert len(kept.answers) == 1


def test_a_run_is_told_as_it_goes_on(study: StudyStore, kept: Kept) -> None:
    """It was killed and went back to what it had saved; what was told is not told again."""
    run = study.runs()[0]
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    done, results = run.folder / "done.json", run.folder / "evals"
    done.rename(study.folder / "done")
    results.rename(study.folder / "results")
    run.metrics_file.write_text("".join(lines[:6]))
    mirror = Mirror(study.folder, "kept")
    mirror.tell()
    told = kept.rows[run.folder.name]
    assert len(told) == 6
    run.metrics_file.write_text("".join(lines[:4]))
    mirror.tell()
    run.metrics_file.write_text("".join(lines))
    mirror.tell()
    (study.folder / "results").rename(results)
    mirror.tell()
    assert not kept.states[run.folder.name]
    (study.folder / "done").rename(done)
    Mirror(study.folder, "kept").tell()  # another command, which knows what the first one told
    steps = [row for row in told if any(name.endswith("/loss") for name in row[1])]
    assert len(steps) == len(lines)
    assert len({(step, *row) for step, row in told}) == len(told), "nothing is told twice"
    assert not missing(told, expected(study, run.folder.name))
    assert kept.states[run.folder.name] == ["done"]


def test_a_tracker_that_fails_is_left_alone(study: StudyStore, kept: Kept) -> None:
    kept.broken, said = True, []
    progress: Any = SimpleNamespace(say=said.append)
    with tracked([study.folder], ["kept"], progress):
        pass
    [words] = said
    assert "ConnectionError: nobody answers. The study goes on" in words
    assert "laura track" in words
    kept.broken = False
    Mirror(study.folder, "kept").end(concluded=False)
    assert not any(missing(told, expected(study, run)) for run, told in kept.rows.items())


@pytest.mark.slow
def test_a_comparison_tells_as_it_goes(
    kept: Kept, tiny_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laura.study.tracking.PERIOD_SECONDS", 0.05)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny_folder, folder=tiny_data))
    with one_thread():
        found = laura.compare(recipe, out=tmp_path / "study", workers=1, track=["kept"])
    assert isinstance(found, laura.StudyResults)
    store = StudyStore(tmp_path / "study")
    for run, told in kept.rows.items():
        assert not missing(told, expected(store, run))
    assert len(kept.rows) == len(store.runs())
    [(answer, figures)] = kept.answers
    assert answer == found.answer
    assert "tradeoff.png" in figures
    assert not [one for one in threading.enumerate() if one.name == "laura-tracking"]


def test_what_cannot_be_told_is_said_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Kept, finished: Any
) -> None:
    with pytest.raises(UsageError, match=r"no tracker 'wandbb'\. Did you mean 'wandb'"):
        laura.compare("micro-small", out=tmp_path / "s", track=["wandbb"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, TRACKERS["wandb"], raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'laura-lab\[wandb\]'"):
        laura.compare("micro-small", out=tmp_path / "s", track=["wandb"])
    assert not (tmp_path / "s").exists()
    from typer.testing import CliRunner

    ended = CliRunner().invoke(app, ["track", str(tmp_path), "kept"])
    assert ended.exit_code == 2
    assert "is no study folder" in ended.stderr
    kept.broken = True
    shutil.copytree(finished[1], tmp_path / "copy")
    ended = CliRunner().invoke(app, ["track", str(tmp_path / "copy"), "kept"])
    assert ended.exit_code != 0
    assert "kept cannot be told: ConnectionError" in ended.stderr


# ----- the libraries themselves, without a network -----


def test_tensorboard_reads_it(study: StudyStore) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Mirror(study.folder, "tensorboard").end(concluded=True)
    for run in study.runs():
        [folder] = (study.folder / "tensorboard").glob(f"* {run.folder.name}")
        read = EventAccumulator(str(folder)).Reload()
        for name, step, value in expected(study, run.folder.name):
            values = {one.step: one.value for one in read.Scalars(name)}
            assert values[step] == pytest.approx(value, rel=1e-6)
    assert list((study.folder / "tensorboard" / "study").glob("events*"))


# mlflow 3.17 uses what SQLAlchemy 2.1 will drop.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_reads_it(study: StudyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{study.folder}/mlflow.db")
    from mlflow import MlflowClient

    for _ in range(2):  # told twice, it is the same runs
        Mirror(study.folder, "mlflow").end(concluded=True)
    client = MlflowClient(f"sqlite:///{study.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_id = {run.data.tags["laura.run"]: run for run in runs}
    assert set(by_id) == {"study", *(run.folder.name for run in study.runs())}
    answer = laura.read_study(study.folder).answer
    assert by_id["study"].data.tags["mlflow.note.content"] == answer
    run = study.runs()[0].folder.name
    assert by_id[run].info.status == "FINISHED"
    assert by_id[run].data.params["arm"] in ("full", "lora")
    for name, step, value in expected(study, run):
        history = client.get_metric_history(by_id[run].info.run_id, name)
        assert [one.value for one in history if one.step == step] == [pytest.approx(value)]


def wandb_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The history in a .wandb file: LevelDB's log format behind seven bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, at, parts = 32 * 1024, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # no room for a head: zeros up to the next block
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            record, parts = Record.FromString(parts), b""
            items = record.history.item
            if items:
                yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def test_wandb_keeps_it_offline(study: StudyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Mirror(study.folder, "wandb").end(concluded=True)
    run = study.runs()[0].folder.name
    [file] = (study.folder / "wandb").glob(f"offline-run-*-{run}/run-{run}.wandb")
    rows = list(wandb_rows(file.read_bytes()))
    for name, step, value in expected(study, run):
        told = [row[name] for row in rows if row.get("step") == step and name in row]
        assert told == [pytest.approx(value)], name
