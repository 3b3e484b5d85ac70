"""A study told to trackers (W&B, MLflow, ...) while it goes on, or afterwards. No torch.

The study folder stays the only state: all that is told is read from it, by whoever looks, so runs
on other machines and those of yesterday are told alike. What was told stands in
STUDY/tracking.json. A tracker that fails is left alone, and no run ever waits for one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laura.recipe.reading import read_recipe
from laura.recipe.sections import Recipe
from laura.recipe.tasks import DRIFT
from laura.results.progress import SILENT, Progress
from laura.results.schema import CLAIMS_FILE, Judgement, read_optional
from laura.results.statistics import Estimate
from laura.results.store import RunStore, StudyStore, read_json, write_json
from laura.results.task_result import TaskResult, change
from laura.study.evidence import leading, result_names, score_of
from laura.study.runs import read_record
from laura.study.sharing import held
from laura.study.trackers import Row, TrackedRun, Tracker, find

PERIOD_SECONDS = 10.0
LAST_SECONDS = 60.0
"""So long a command waits at its end for trackers that are still being told."""
TOLD = "tracking.json"
FIGURES = ("tradeoff", "learning_curves")
TRAINED = ("loss", "gradient_norm", "learning_rate", "tokens", "tokens_per_second")


@dataclass
class _Told:
    """What a tracker knows of a run."""

    rows: int = 0
    results: list[str] = field(default_factory=list)
    state: str = ""


class Mirror:
    """Tells one tracker what is in a study folder.

    Args:
        folder: Of the study; it may not be there yet.
        tracker: Name of the tracker.
        progress: Where it is said that the tracker failed.

    Attributes:
        fault: Why it is told nothing more, or "".

    Raises:
        UsageError, MissingExtraError: see `trackers.find`.
    """

    def __init__(self, folder: Path, tracker: str, progress: Progress = SILENT) -> None:
        self._store, self._name, self._progress = StudyStore(folder), tracker, progress
        self._open: dict[str, TrackedRun] = {}
        self._tracker: Tracker | None = None
        self.fault = ""
        find(tracker)

    def tell(self) -> None:
        """Tell what is new: steps, and scores at the points of the budget."""
        recipe = self._store.folder / "recipe.yaml"
        if self.fault or not recipe.is_file():
            return
        with self._surely(), self._turn() as told:
            self._tell_runs(read_recipe(recipe), told)

    def end(self, concluded: bool) -> None:
        """Tell the rest, and where it has one the study's answer and its charts."""
        self.tell()
        if self.fault or self._tracker is None:
            return
        with self._surely():
            for name, opened in self._open.items():
                opened.close(self._store.run(name).state)
            self._open.clear()
            judged = read_optional(Judgement, self._store.folder / CLAIMS_FILE)
            if concluded and judged is not None:
                figures = [self._store.folder / "figures" / f"{name}.png" for name in FIGURES]
                self._tracker.conclude(judged.answer, [file for file in figures if file.is_file()])

    @contextmanager
    def _surely(self) -> Iterator[None]:
        """Whatever a tracker's library raises ends the tracking alone."""
        try:
            yield
        except Exception as error:
            self.fault = f"{self._name} cannot be told: {type(error).__name__}: {error}"
            self._progress.say(
                f"{self.fault}. The study goes on; `laura track {self._store.folder} {self._name}` "
                "tells the rest"
            )

    @contextmanager
    def _turn(self) -> Iterator[dict[str, _Told]]:
        """What was told of each run; of several commands on a study one tells at a time."""
        file = self._store.folder / TOLD
        with held(file.with_name(f".{TOLD}.lock")):
            everyone = read_json(file) if file.is_file() else {}
            told = {run: _Told(**one) for run, one in everyone.get(self._name, {}).items()}
            yield told
            now = {run: vars(one) for run, one in told.items()}
            if now != everyone.get(self._name):
                write_json(file, {**everyone, self._name: now})

    def _tell_runs(self, recipe: Recipe, told: dict[str, _Told]) -> None:
        if self._tracker is None:
            self._tracker = find(self._name).connect(self._store.folder.name, self._store.folder)
        for run in self._store.runs():
            known, state = told.setdefault(run.folder.name, _Told()), run.state
            if known.state == state != "open" or (record := read_record(run)) is None:
                continue
            metrics = run.metrics()
            scores = score_rows(self._store, run, record, recipe, known.results)
            rows = [*map(_step_row, metrics[known.rows :]), *scores.values()]
            if rows:
                self._opened(run.folder.name, record, recipe).log(rows)
            known.rows = max(known.rows, len(metrics))
            known.results = [*known.results, *scores]  # the file's own list stays as it was read
            # A run that is done is measured only then.
            whole = len(known.results) == len(record["points"]) * len(_measured(recipe))
            if state != "open" and (whole or state != "done"):
                known.state = state
                self._opened(run.folder.name, record, recipe).close(state)
                del self._open[run.folder.name]

    def _opened(self, run: str, record: dict[str, Any], recipe: Recipe) -> TrackedRun:
        if run not in self._open:
            assert self._tracker is not None
            title = f"{record['arm']} {record['learning_rate']:g} seed {record['seed']}"
            settings = {key: record[key] for key in ("arm", "learning_rate", "seed")}
            settings |= {"study": recipe.name, "base": recipe.base.model}
            settings |= recipe.arms[record["arm"]].model_dump(exclude={"learning_rates"})
            self._open[run] = self._tracker.open(run, title, settings)
        return self._open[run]


def _step_row(row: Mapping[str, Any]) -> Row:
    """A step's numbers; what a cooldown branch did stands beside the trunk that it left."""
    leg = row["leg"] if row["leg"].startswith("branch") else "train"
    return row["step"], {f"{leg}/{key}": row[key] for key in TRAINED if key in row}


def _measured(recipe: Recipe) -> list[tuple[str, str]]:
    """Each side with each of its tasks."""
    sides = {"learning": recipe.measure.learning, "forgetting": recipe.measure.forgetting}
    return [(side, task) for side, tasks in sides.items() for task in result_names(tasks)]


def score_rows(
    store: StudyStore, run: RunStore, record: dict[str, Any], recipe: Recipe, told: Sequence[str]
) -> dict[str, Row]:
    """Scores, and their changes from the base with errors, that were not told yet."""
    found = {}
    for mark in record["points"]:
        for side, task in _measured(recipe):
            file, place = run.evaluation(mark["step"], task), f"{mark['step']}/{task}"
            if place in told or not file.is_file():
                continue
            result = TaskResult.read(file)
            values = _numbers(f"{side}/{task}", score_of(result))
            base = store.base_evaluation(task)
            if task not in DRIFT and base.is_file():
                moved = change(TaskResult.read(base), result, leading(result))
                values |= _numbers(f"{side}/{task}/change", moved)
            found[place] = (mark["step"], values)
    return found


def _numbers(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}/stderr": found.stderr}


@contextmanager
def tracked(folders: Sequence[Path], trackers: Sequence[str], progress: Progress) -> Iterator[None]:
    """Within the block, studies are told to trackers every few seconds, from another thread.

    Args:
        folders: Of the studies.
        trackers: Names of trackers.
        progress: Where it is said that one failed.

    Raises:
        UsageError, MissingExtraError: see `trackers.find`.
    """
    mirrors = [Mirror(folder, name, progress) for folder in folders for name in trackers]
    ended, concluded = threading.Event(), False

    def follow() -> None:
        while not ended.wait(PERIOD_SECONDS):
            for mirror in mirrors:
                mirror.tell()
        for mirror in mirrors:
            mirror.end(concluded)

    if not mirrors:
        yield
        return
    thread = threading.Thread(target=follow, name="laura-tracking", daemon=True)
    thread.start()
    try:
        yield
        concluded = True
    finally:
        ended.set()
        thread.join(LAST_SECONDS)
        if thread.is_alive():
            progress.say("trackers are still being told; `laura track STUDY NAME` goes on")
