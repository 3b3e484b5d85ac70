"""What a study's commands give, as the JSON values that they write."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laura.results.schema import CLAIMS_FILE, Judgement, read_file
from laura.study import compare as comparing
from laura.study import findings


def compare(*given: Any, **asked: Any) -> dict[str, Any]:
    """`compare`, and the value of its summary.json."""
    return comparing.compare(*given, **asked).model_dump(mode="json")


def write_summary(*given: Any) -> dict[str, Any]:
    """`write_summary`, and the value of its summary.json."""
    return comparing.write_summary(*given).model_dump(mode="json")


def train(*given: Any, **asked: Any) -> dict[str, Any]:
    """`train`, its summary as the value of summary.json."""
    made = comparing.train(*given, **asked)
    return {**made, "summary": made["summary"].model_dump(mode="json")}


def read_spectra(*given: Any) -> list[dict[str, Any]]:
    """`read_spectra`, as values of analysis.json."""
    return [one.model_dump(mode="json") for one in findings.read_spectra(*given)]


def read_subspaces(*given: Any) -> list[dict[str, Any]]:
    """`read_subspaces`, as values of analysis.json."""
    return [one.model_dump(mode="json") for one in findings.read_subspaces(*given)]


def read_movement(*given: Any) -> list[dict[str, Any]]:
    """`read_movement`, as values of analysis.json."""
    return [one.model_dump(mode="json") for one in findings.read_movement(*given)]


def judgement(study: Path) -> Judgement:
    """What a study concludes."""
    return read_file(Judgement, study / CLAIMS_FILE)


def best_rate(arm: dict[str, Any]) -> float | None:
    """The one best rate of an arm of summary.json; None where it has none."""
    rates = set(arm["best"].values())
    assert len(rates) <= 1
    return next(iter(rates), None)


def stamps(study: Path) -> dict[Path, int]:
    """When each file of the runs was written."""
    return {p: p.stat().st_mtime_ns for p in (study / "runs").rglob("*") if p.is_file()}


ROOT = Path(__file__).parents[2]


def command(*words: object) -> dict[str, Any]:
    """`laura` with these words, in a process of one thread."""
    return {"args": [sys.executable, "-m", "laura", *map(str, words)],
            "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}  # fmt: skip


def kill_at_random(
    started: Sequence[dict[str, Any]],
    begun: Callable[[], bool],
    seed: int,
    seconds: float = 3.0,
    number: int = signal.SIGKILL,
) -> int:
    """Start commands one after the other and kill each at a random moment.

    Args:
        started: The commands.
        begun: Whether one has come so far that its end may be drawn.
        seed: Of the moments.
        seconds: The latest moment after that.
        number: The signal.

    Returns:
        How many were killed; the others had ended by themselves.
    """
    moments, kills = random.Random(seed), 0
    for one in started:
        process = subprocess.Popen(**one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not begun() and process.poll() is None:
            time.sleep(0.02)
        try:
            process.wait(timeout=moments.uniform(0.1, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait()
            kills += 1
    return kills


def finish(one: dict[str, Any]) -> None:
    """The command once more, to its end."""
    ended = subprocess.run(**one, capture_output=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
