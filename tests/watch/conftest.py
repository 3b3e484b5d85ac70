"""A study in the midst of its work: some runs done, one held as if it went on, some in line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from laura.results.store import RunStore, StudyStore, read_json
from laura.study.sharing import LOCK, claimed
from tests.study.conftest import finished, tiny_data

__all__ = ["finished", "tiny_data"]


def place_of(run: RunStore) -> tuple[str, float, int]:
    """Arm, rate and seed of a run."""
    record = read_json(run.folder / "run.json")
    return record["arm"], record["learning_rate"], record["seed"]


def whole_of(run: RunStore) -> int:
    """Tokens of a whole run."""
    return int(read_json(run.folder / "run.json")["points"][-1]["tokens"])


@pytest.fixture
def study(finished: Any, tmp_path: Path) -> Path:
    """Each budget is a run of its own: the larger one of full at 3e-3 with seed 1 has begun."""
    folder = tmp_path / "tiny"
    shutil.copytree(finished[1], folder)
    for name in ("claims.json", "analysis.json", "summary.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for run in StudyStore(folder).runs():
        arm, rate, seed = place_of(run)
        if (arm, seed) == ("lora", 1):
            shutil.rmtree(run.folder)
        if (arm, rate, seed) == ("full", 3e-3, 1) and whole_of(run) > 1000:
            (run.folder / "done.json").unlink()
            rows = run.metrics_file.read_text().splitlines(keepends=True)
            run.metrics_file.write_text("".join(rows[: len(rows) * 3 // 4]))
            shutil.rmtree(run.folder / "evals")
    return folder


@pytest.fixture
def running(study: Path) -> Iterator[Path]:
    """The study while a command holds it and is at that run."""
    with ExitStack() as held:
        held.enter_context(claimed(study / LOCK))
        for run in StudyStore(study).runs():
            if run.state == "open":
                held.enter_context(claimed(run.folder / LOCK))
        yield study
