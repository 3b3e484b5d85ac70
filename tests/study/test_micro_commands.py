"""Train, stop and go on, compare, evaluate and report on the micro base, by the commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from laura.results.store import file_hash
from scripts.check_micro import Check, check_study

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def laura(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "laura", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small comparison by the command line, two workers: its folder and its answer."""
    folder = tmp_path_factory.mktemp("micro") / "study"
    done = laura("compare", "micro-small", "--out", str(folder), "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_comparison_ends_with_its_report_and_verdict(compared: Any) -> None:
    folder, answer = compared
    assert (folder / "report.html").is_file() and (folder / "figures" / "tradeoff.svg").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["base"]["scores"]["micro_facts"]["value"] > 0.7
    assert summary["base"]["scores"]["micro_code"]["value"] == 0
    for point in summary["points"]:
        assert point["changes"]["target_loss"]["value"] < -1
    assert answer["judgement"]["answer"]


def test_one_run_and_its_report_again(compared: Any, tmp_path: Path) -> None:
    folder, _ = compared
    shutil.copytree(folder, tmp_path / "study")
    trained = laura(
        "train", "micro-small", "--arm", "full", "--learning-rate", "1e-3", "--seed", "0",
        "--out", str(tmp_path / "study"), "--json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "study" / "report.html").unlink()
    drawn = laura("report", str(tmp_path / "study"))
    assert drawn.returncode == 0 and (tmp_path / "study" / "report.html").is_file()


def test_a_checkpoint_and_an_adapter_are_evaluated(compared: Any, tmp_path: Path) -> None:
    folder, _ = compared
    points = json.loads((folder / "summary.json").read_text())["points"]
    for method in ("full", "lora-r4"):
        point = next(p for p in points if p["arm"] == method)
        place = folder / "runs" / point["run"] / "checkpoints" / f"{point['step']:08d}"
        model = [str(place)] if method == "full" else ["micro", "--adapter", str(place)]
        done = laura(
            "evaluate", *model, "--tasks", "micro_facts,micro_code", "--limit", "40",
            "--set", "measure.precision=auto", "--out", str(tmp_path / method), "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        answer = answer if method == "full" else answer[place.name]
        found = answer["micro_facts"]["metrics"]["acc_norm"]["value"]
        assert found == pytest.approx(point["scores"]["micro_facts"]["value"], abs=0.051)


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    words = [
        "train", "micro-small", "--arm", "full", "--learning-rate", "1e-3", "--seed", "0",
        "--set", "measure.forgetting=[source_loss]", "--set", "measure.learning=[target_loss]",
        "--set", "train.checkpoint_minutes=1e-6",
    ]  # fmt: skip
    assert laura(*words, "--out", str(tmp_path / "whole")).returncode == 0
    command = [sys.executable, "-m", "laura", *words, "--out", str(tmp_path / "stopped")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((tmp_path / "stopped").glob("runs/*/resume/*/*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert laura(*words, "--out", str(tmp_path / "stopped")).returncode == 0
    weights = [
        sorted(file_hash(path) for path in (tmp_path / name).rglob("model.safetensors"))
        for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1] and len(weights[0]) == 2


def test_what_a_comparison_must_show_is_read_off_it(compared: Any, tmp_path: Path) -> None:
    folder, _ = compared
    checks = {check.what.split(": ")[1]: check for check in check_study(folder)}
    # Eight thousand tokens teach nothing, and no check may say they did.
    assert checks["full finetuning at its best, micro_code"].holds is False
    assert checks["minutes of the comparison"].holds is True
    (folder / "timing.json").unlink()
    again = {check.what.split(": ")[1]: check for check in check_study(folder)}
    assert again["minutes of the comparison"].holds is None
    [absent] = check_study(tmp_path / "none")
    assert absent == Check(absent.what, absent.found, "a finished comparison", None)
