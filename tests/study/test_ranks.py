"""Runs of a study over several processes: those of one, and nothing lost however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BaseSection, FullArm, TrainSection
from laura.results.errors import StoreError, UsageError
from laura.results.store import RunStore, StudyStore
from laura.study.ranks import ranks
from laura.study.workbench import Workbench
from tests.study.carried_out import ROOT, command, compare, finish, train
from tests.study.conftest import one_thread

SAME = ("step", "leg", "loss", "gradient_norm", "learning_rate", "tokens", "validation_loss")


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def assert_same(run: RunStore, wanted: RunStore) -> None:
    """Equal metrics and weights but for the order of adding."""
    rows, expected = run.metrics(), wanted.metrics()
    assert len(rows) == len(expected) > 0
    for row, one in zip(rows, expected, strict=True):
        for key in SAME:
            value = one.get(key)
            assert row.get(key) == (value if key == "leg" else pytest.approx(value, abs=1e-4)), key
    for place in wanted.folder.glob("checkpoints/*/*.safetensors"):
        ours, theirs = load_file(run.folder / place.relative_to(wanted.folder)), load_file(place)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "rate"), [("full", 1e-3), ("lora", 1e-2)])
def test_a_run_over_two_processes_is_the_run_of_one(
    recipe_text: str, tmp_path: Path, arm: str, rate: float
) -> None:
    changes = ["train.rows_per_pass=1", "budget.tokens=[1200]", "train.validate_every=2"]
    runs, points = [], []
    for devices in (1, 2):
        recipe = parse_recipe(recipe_text, [*changes, f"train.devices={devices}"])
        study = tmp_path / str(devices)
        with one_thread():
            made = train(recipe, arm=arm, learning_rate=rate, study=study)
        runs.append(StudyStore(study).run(made["runs"][0].pop("id")))
        points.append(made["summary"]["points"][0]["scores"])
    one, two = runs
    assert one.folder.name == two.folder.name  # the same run, whatever their number
    assert_same(two, one)
    assert str(points[0])[:6] == str(points[1])[:6]


@pytest.mark.slow
def test_a_process_that_cannot_begin_ends_the_run_with_its_reason(tiny_folder: Path) -> None:
    bench = Workbench(BaseSection(model=str(tiny_folder)), "cpu")
    section = TrainSection(devices=2, rows_per_pass=1)
    arm = FullArm(method="full", layers=[99])
    with (
        pytest.raises(StoreError, match=r"process 2 of 2 \(cpu\).*exit code 1 \(.*ModelError"),
        ranks(bench, arm, 0, section, 1e-3),
    ):
        pytest.fail("it has begun")


def test_workers_and_devices_exclude_each_other(recipe_text: str, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text, ["train.rows_per_pass=1", "train.devices=2"])
    with pytest.raises(UsageError, match=r"--workers is 2, but each run takes all of train\."):
        compare(recipe, study=tmp_path / "study", workers=2)
    assert not (tmp_path / "study").exists()


def wait_for(what: Callable[[], Any], process: Any = None, seconds: float = 90) -> Any:
    """What comes out as soon as it is true."""
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_killed_and_stopped_it_goes_on_with_another_number(
    recipe_text: str, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text)

    def words(study: str, devices: int) -> dict[str, Any]:
        changes = ("train.rows_per_pass=1", "budget.tokens=[10000]", f"train.devices={devices}")
        sets = [word for change in changes for word in ("--set", change)]
        return command("train", file, "--arm", "full", "--learning-rate", "1e-3",
                       "--out", tmp_path / study, *sets)  # fmt: skip

    def steps() -> int:
        return sum(len(run.metrics()) for run in StudyStore(tmp_path / "cut").runs())

    def begin() -> tuple[Any, int]:
        """A command that has gone on for some steps, and its other process."""
        before = steps()
        process = subprocess.Popen(
            **words("cut", 2), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: steps() > before + 5, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (child,) = [int(one) for one in children if is_rank(int(one))]
        return process, child

    process, child = begin()
    os.kill(child, signal.SIGKILL)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 2, told
    assert "process 2 of 2 (cpu) of the run ended by signal SIGKILL" in told
    assert "Traceback" not in told

    process, child = begin()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert not is_rank(child)

    process, child = begin()
    process.kill()
    process.communicate()
    wait_for(lambda: not is_rank(child), seconds=10)

    before = steps()
    assert before > 15
    for study, devices in (("cut", 1), ("whole", 1)):
        finish(words(study, devices))
    (cut,), (whole,) = (StudyStore(tmp_path / study).runs() for study in ("cut", "whole"))
    assert_same(cut, whole)


def is_rank(pid: int) -> bool:
    """Whether a process is one of those that follow the first."""
    try:
        return b"laura.study.ranks" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
