"""What the page shows, read from a study folder alone, so it is the same whoever carries it out.

What was read of a run is kept until its files change: a poll of a study that stands still reads
nothing, and one of a study that goes on what is new.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from laura.recipe.reading import stored_recipe
from laura.recipe.search import families_of, grid_seeds
from laura.recipe.sections import Recipe
from laura.report.explore import drawing
from laura.report.formats import turned
from laura.report.samples.turned import chances
from laura.results.errors import LauraError, StoreError
from laura.results.schema import CLAIMS_FILE, Judgement, PointRow, Summary, read_optional
from laura.results.store import StudyStore, read_json
from laura.results.task_result import TaskResult
from laura.study.evidence import Evidence, Point, RunFacts, all_tasks, result_names
from laura.study.remaining import SPREAD, RunPace, costs, seconds_left
from laura.study.runs import (
    RunSpec,
    further_seeds,
    grid_of,
    is_of,
    read_record,
    runs_each,
    specs_of,
)
from laura.study.sharing import LOCK, is_taken
from laura.study.steering import Steering, read_steering
from laura.study.summary import build_summary, evidence_of, longest_path, points_of
from laura.training.schedules import plan_legs

CURVE_POINTS = 60
EVENTS = 8
GAP_SECONDS = 20.0  # between two runs of a worker
LEAST_LOSS = 1e-9


class StudyGone(StoreError):
    """The folder that is watched is not there any more."""


def passing_tokens(record: dict[str, Any], recipe: Recipe) -> float:
    """Tokens that a whole run trains on, those of cooldowns that branch off included.

    Args:
        record: Its run.json.
        recipe: The study's.
    """
    steps = [mark["step"] for mark in record["points"]]
    if not recipe.arms[record["arm"]].is_trained:
        return 0.0
    hot = recipe.budget.points == "hot" and recipe.train.schedule == "trapezoidal"
    legs = plan_legs(recipe.train, steps, hot)
    each: float = record["points"][-1]["tokens"] / steps[-1]
    return each * sum(leg.end - leg.start for leg in legs)


@dataclass
class ReadRun:
    """What was read of a run.

    Attributes:
        facts: Its record, and how it stands.
        points: What was measured of it.
        seen: What its files were when that was read.
        curve: Tokens and loss, some sixty places up to the largest budget.
        trained: Tokens that it was trained on so far.
        train_seconds: What they took.
        cohort: Runs that it is trained with, itself too.
        touched: When its losses were last written.
        live: Whether somebody is at it now.
    """

    facts: RunFacts
    points: list[Point] = field(default_factory=list)
    seen: tuple[Any, ...] = ()
    curve: list[tuple[float, float]] = field(default_factory=list)
    trained: float = 0.0
    train_seconds: float = 0.0
    cohort: int = 1
    touched: float = 0.0
    live: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it apart among the runs that a recipe asks for."""
        budgets = tuple(mark["budget"] for mark in self.facts.record["points"])
        return (self.facts.arm, self.facts.learning_rate, self.facts.seed, budgets)

    def measured(self, tasks: int) -> bool:
        """Whether it ended and all of so many tasks were measured at each of its points."""
        whole = [point for point in self.points if len(point.results) == tasks]
        return self.facts.state == "done" and len(whole) == len(self.facts.record["points"])


class StudyView:
    """A study folder, looked at again and again.

    Args:
        folder: Of the study.
    """

    def __init__(self, folder: Path) -> None:
        self._store = StudyStore(folder)
        self._runs: dict[str, ReadRun] = {}
        self._built: tuple[tuple[Any, ...], Evidence, Summary] | None = None
        self._live = deque[tuple[float, float]]()
        self._known: tuple[int, Recipe] | None = None
        self._chances = dict[str, float | None]()

    @property
    def evidence(self) -> Evidence:
        """What the folder held when it was last looked at."""
        assert self._built is not None
        return self._built[1]

    def state(self) -> dict[str, Any]:
        """All that the page shows, as a JSON value.

        Raises:
            StudyGone: the folder is gone.
            LauraError: a file of it is damaged.
        """
        started, folder = time.monotonic(), self._store.folder
        if not (folder / "recipe.yaml").is_file() or not (folder / "study.json").is_file():
            raise StudyGone(f"there is no study in {folder} any more: it was deleted or moved")
        recipe, steering = self._recipe(), read_steering(folder)
        reads = self._look(recipe)
        evidence, summary = self._gathered(recipe, steering, reads)
        running = is_taken(folder / LOCK)
        cells, more = self._cells(reads, evidence, summary, steering)
        open_cells = [cell for cell in cells if cell["state"] in ("line", "open", "running")]
        finished = not running and not open_cells
        return {
            "name": recipe.name,
            "folder": folder.name,
            "base": recipe.base.model,
            "seeds": sorted({cell["seed"] for cell in cells}),
            "recipe_seeds": recipe.seeds,
            "budgets": list(recipe.budget.listed),
            "cells": cells,
            "running": running,
            "stopping": running and steering.stop is not None,
            "finished": finished,
            "searched": recipe.search.sampler != "grid",
            "events": _events(reads, evidence),
            "began": min((_made(r) for r in reads), default=None),
            "now": time.time(),
            "answer": self._answer() if finished else "",
            "report": (folder / "report.html").is_file(),
            "measured": sum(len(read.points) for read in reads),
            **more,
            **drawing(summary, self._guessing(summary)),
            # A study that others need the processor for is not looked at all the time.
            "again_seconds": max(2.0, 20 * (time.monotonic() - started)) if not finished else 15.0,
        }

    def grown(self, arm: str) -> list[float]:
        """The rates that an arm's list has come to, as far as it may grow next."""
        self.state()
        choice = self.evidence.choices.get(arm)
        return [] if choice is None else [*choice.rates, *choice.further]

    def _guessing(self, summary: Summary) -> dict[str, float]:
        """What guessing gets of each task; read once the base is measured."""
        if len(self._chances) < len(summary.base.scores):
            with suppress(StoreError):
                self._chances = dict.fromkeys(summary.base.scores)
                self._chances |= chances(self._store.folder, summary)
        return {name: chance for name, chance in self._chances.items() if chance is not None}

    def _answer(self) -> str:
        try:
            judged = read_optional(Judgement, self._store.folder / CLAIMS_FILE)
        except LauraError:
            return ""
        return judged.answer if judged else ""

    # ----- reading -----

    def _recipe(self) -> Recipe:
        file = self._store.folder / "recipe.yaml"
        written = file.stat().st_mtime_ns
        if self._known is None or self._known[0] != written:
            self._known = (written, stored_recipe(file))
        return self._known[1]

    def _look(self, recipe: Recipe) -> list[ReadRun]:
        """Every run of the recipe, in the order in which they began."""
        facts = read_json(self._store.folder / "study.json")
        tasks = result_names(all_tasks(recipe))
        there = {store.folder.name: store for store in self._store.runs()}
        for gone in self._runs.keys() - there.keys():
            del self._runs[gone]
        for name, store in there.items():
            if name not in self._runs and (record := read_record(store)) is not None:
                self._runs[name] = ReadRun(RunFacts(record, "open", None, store))
        found = [one for one in self._runs.values() if is_of(one.facts.record, recipe, facts)]
        for one in found:
            self._read(one, tasks, facts.get("tasks", {}))
        return sorted(found, key=_made)

    def _read(self, one: ReadRun, tasks: Sequence[str], versions: dict[str, Any]) -> None:
        store = one.facts.store
        assert store is not None
        one.live = not one.measured(len(tasks)) and is_taken(store.folder / LOCK)
        files = store.folder.glob("evals/*/*.json")
        seen = (store.state, sorted(file.relative_to(store.folder).as_posix() for file in files))
        if seen != one.seen:
            one.facts = replace(one.facts, state=store.state, reason=store.reason)
            one.points, one.seen = points_of(one.facts, tasks, versions), seen
        if not store.metrics_file.is_file():
            return
        touched = store.metrics_file.stat().st_mtime
        if touched != one.touched and (rows := store.metrics()):
            one.touched, one.curve = touched, _curve(longest_path(rows))
            one.trained = sum(row["tokens_per_second"] * row["seconds"] for row in rows)
            one.train_seconds = sum(row["seconds"] for row in rows)
            one.cohort = rows[-1].get("cohort", 1)

    def _gathered(
        self, recipe: Recipe, steering: Steering, reads: Sequence[ReadRun]
    ) -> tuple[Evidence, Summary]:
        """What was measured, put together again where something is new."""
        names = result_names(all_tasks(recipe))
        files = [self._store.base_evaluation(name) for name in names]
        there = {n: f for n, f in zip(names, files, strict=True) if f.is_file()}
        key = (recipe, steering, tuple(there), tuple((r.facts.run_id, r.seen) for r in reads))
        if self._built is None or self._built[0] != key:
            facts = read_json(self._store.folder / "study.json")
            base = {name: TaskResult.read(file) for name, file in there.items()}
            # Curves are drawn from what is kept here.
            runs = [replace(read.facts, store=None) for read in reads]
            points = [point for read in reads for point in read.points]
            evidence = evidence_of(recipe, facts, base, runs, points)
            self._built = (key, evidence, build_summary(evidence))
        return self._built[1:]

    # ----- runs, and the time left -----

    def _cells(
        self, reads: Sequence[ReadRun], evidence: Evidence, summary: Summary, steering: Steering
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A cell an arm, rate and seed; and how long they take, and one more would."""
        begun, paces = {read.key: read for read in reads}, paces_of(reads, evidence, steering)
        base = math.fsum(result.seconds for result in evidence.base.values())
        cost = costs(list(paces.values()), base)
        cells: dict[tuple[Any, ...], list[_CellRun]] = {}
        for key, pace in paces.items():
            if key[0] != "later":
                part = _CellRun(pace, cost(pace), begun.get(key))
                cells.setdefault(key[:3], []).append(part)
        recipe, choices = evidence.recipe, evidence.choices
        order = list(recipe.arms)
        told = [
            {
                "arm": arm,
                "rate": rate,
                "seed": seed,
                "skipped": steering.skips(arm, rate, seed),
                "chosen": evidence.best.get(arm, {}).get(seed) == rate,
                **_told(parts, steering.skips(arm, rate, seed), summary),
            }
            for (arm, rate, seed), parts in cells.items()
        ]
        told.sort(key=lambda cell: (order.index(cell["arm"]), cell["rate"], cell["seed"]))
        fresh = [_as_begun(pace) for pace in paces.values()]
        whole = [seconds for one in fresh if (seconds := cost(one)) is not None]
        seeds = grid_seeds(recipe.seeds, recipe.search)
        lists = {name: _list_of(name, evidence, len(seeds)) for name in recipe.arms}
        trained = [name for name in recipe.arms if recipe.arms[name].is_trained]
        used = {cell["seed"] for cell in told} | set(recipe.seeds)
        every = recipe.search.seeds_value == "all"
        return told, {
            "left": self._left(list(paces.values()), base, reads),
            "lists": lists,
            "growing": [name for name in trained if _may_grow(name, evidence)],
            "run_seconds": max(whole, default=0.0),
            "next_seed": next(seed for seed in itertools.count() if seed not in used),
            "seed_runs": sum(len(choices[n].rates) if every else 1 for n in trained),
        }

    def _left(
        self, paces: Sequence[RunPace], base: float, reads: Sequence[ReadRun]
    ) -> dict[str, Any] | None:
        now, live = time.monotonic(), [read for read in reads if read.live]
        # Runs in lock-step share one worker, and each its time.
        self._live.append((now, math.fsum(1 / read.cohort for read in live)))
        while self._live[0][0] < now - GAP_SECONDS:
            self._live.popleft()
        workers = max(1, round(max(count for _, count in self._live)))
        seconds = seconds_left(paces, base, workers)
        if seconds is None:
            return None
        ends = {"low": seconds / SPREAD, "high": seconds * SPREAD}
        return {"seconds": seconds, **ends, "workers": workers}


def _key(spec: RunSpec) -> tuple[Any, ...]:
    return (spec.arm, spec.learning_rate, spec.seed, tuple(spec.budget.listed))


def _planned(evidence: Evidence) -> Iterator[RunSpec]:
    """The runs that are known to come, or came: lists as they grew, and seeds at the best rate."""
    recipe, choices = evidence.recipe, evidence.choices
    drawn = recipe.search.sampler != "grid"
    rates = {
        name: () if drawn and recipe.arms[name].external is None else (*one.rates, *one.further)
        for name, one in choices.items()
    }
    yield from grid_of(recipe, rates)
    for seed in further_seeds(recipe):
        for name, best in evidence.best.items():
            yield from specs_of(recipe, name, best[seed], seed)


def _drawn_later(evidence: Evidence, reads: Sequence[ReadRun], each: float) -> Iterator[RunPace]:
    """Runs whose rates are not known yet: trials, and seeds at a rate that is yet to be chosen."""
    recipe, last = evidence.recipe, max(evidence.recipe.budget.listed)
    points = len(recipe.budget.listed) if runs_each(recipe) == 1 else 1
    if recipe.search.sampler != "grid":
        for family in families_of(recipe.arms, recipe.search.families):
            arms = list(family.arms.values())
            tried = {(r.facts.arm, r.facts.learning_rate) for r in reads if r.facts.arm in arms}
            for _ in range((recipe.search.trials - len(tried)) * runs_each(recipe)):
                yield RunPace(arms[0], each * last, points)
    for arm in recipe.arms:
        if arm not in evidence.best:
            for _ in range(len(further_seeds(recipe)) * runs_each(recipe)):
                yield RunPace(arm, each * last, points)


def paces_of(
    reads: Sequence[ReadRun], evidence: Evidence, steering: Steering
) -> dict[tuple[Any, ...], RunPace]:
    """Every run by its key, those that began first: what it did, and what it is to do.

    Args:
        reads: The runs that began, in that order.
        evidence: What was measured.
        steering: What is skipped.
    """
    recipe, found = evidence.recipe, {}
    tasks = len(result_names(all_tasks(recipe)))
    for read in reads:
        complete = [point for point in read.points if len(point.results) == tasks]
        ended = read.facts.state in ("diverged", "pruned") or read.measured(tasks)
        found[read.key] = RunPace(
            read.facts.arm,
            passing_tokens(read.facts.record, recipe),
            len(read.facts.record["points"]),
            read.trained,
            read.train_seconds,
            len(complete),
            math.fsum(result.seconds for point in complete for result in point.results.values()),
            read.live,
            over=(ended or steering.skips(*read.key[:3])) and not read.live,
        )
    whole = [found[read.key].tokens / read.key[3][-1] for read in reads]
    trained = [one for one in whole if one]
    # Of a budget's tokens or epochs; before a run has begun any number: its time is not known.
    each = fmean(trained) if trained else 1.0
    for spec in _planned(evidence):
        key = _key(spec)
        if key not in found:
            tokens = each * key[3][-1] if recipe.arms[spec.arm].is_trained else 0.0
            found[key] = RunPace(spec.arm, tokens, len(key[3]), over=steering.skips(*key[:3]))
    for place, pace in enumerate(_drawn_later(evidence, reads, each)):
        found["later", place] = pace
    return found


@dataclass(frozen=True)
class _CellRun:
    """A run of a cell: how far it is, how many seconds it still takes, what was read of it."""

    pace: RunPace
    left: float | None
    read: ReadRun | None


# What goes on is told before what has ended, and what failed before what went well.
STATES = ("running", "open", "line", "diverged", "pruned", "failed", "done")


def _told(parts: Sequence[_CellRun], skipped: bool, summary: Summary) -> dict[str, Any]:
    """How the run of a cell stands; where every budget is a run of its own, all of them."""
    reads = [part.read for part in parts if part.read is not None]
    states = [_state(part) for part in parts]
    state = next(one for one in STATES if one in states)
    trained = all(p.pace.trained >= 0.999 * p.pace.tokens for p in parts if p.pace.live)
    if state == "running" and trained:
        state = "measuring"
    elif skipped and state in ("open", "line"):
        state = "skipped"
    sizes = [part.pace.tokens or part.pace.points for part in parts]
    done = math.fsum(p.pace.share * size for p, size in zip(parts, sizes, strict=True))
    left = [part.left for part in parts]
    runs = {read.facts.run_id for read in reads}
    return {
        "state": state,
        "share": done / math.fsum(sizes),
        "left": None if None in left else math.fsum(one for one in left if one),
        "curve": max((read.curve for read in reads), key=len, default=[]),
        "began": min((_made(read) for read in reads), default=None),
        "reason": next((read.facts.reason for read in reads if read.facts.reason), ""),
        "results": sorted(
            (p.budget, _moved(p, summary, True), _moved(p, summary, False))
            for p in summary.points
            if p.run in runs
        ),
    }


def _state(part: _CellRun) -> str:
    if part.read is None:
        return "line"
    if part.pace.live:
        return "running"
    # One that was trained, and is still to be measured, has not ended.
    return part.read.facts.state if part.pace.over else "open"


def _moved(point: PointRow, summary: Summary, learnt: bool) -> float | None:
    """What a point learnt or forgot by the measures that lead, as it is shown."""
    names = summary.measure.learning if learnt else [*summary.forgetting_measures]
    if not names or names[0] not in summary.tasks:
        return None
    task = summary.task(names[0])
    found = turned(summary.change(point, task.name), task, learnt)
    return None if found is None else found.value * task.scale


def _as_begun(pace: RunPace) -> RunPace:
    """A run of the same size of which nothing is done yet."""
    return RunPace(pace.arm, pace.tokens, pace.points)


def _may_grow(arm: str, evidence: Evidence) -> bool:
    """Whether an arm's list may turn out to grow, for all that is known."""
    recipe = evidence.recipe
    seeds = grid_seeds(recipe.seeds, recipe.search)
    best = evidence.best.get(arm, {})
    return recipe.search.sampler == "grid" and recipe.search.extend > 0 and len(best) < len(seeds)


def _list_of(arm: str, evidence: Evidence, seeds: int) -> dict[str, Any]:
    """An arm's rates, and the two that lie a step beyond them; none where nothing may be added."""
    recipe = evidence.recipe
    given, choice = recipe.arms[arm], evidence.choices[arm]
    rates = sorted({*choice.rates, *choice.further, *given.learning_rates})
    fixed = not given.is_trained or recipe.search.sampler != "grid"
    fixed = fixed or any(arm in family for family in recipe.search.families.values())
    low, high = rates[0], rates[-1]
    steps = (rates[1] / low, high / rates[-2]) if len(rates) > 1 else (2.0, 2.0)
    beyond = [float(f"{low / steps[0]:.3g}"), float(f"{high * steps[1]:.3g}")]
    return {
        "fixed": fixed,
        "beyond": [] if fixed else [rate for rate in beyond if 0 < rate <= 1],
        "runs": seeds * runs_each(recipe),
    }


def _curve(rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Tokens and loss: the geometric mean of each of some sixty stretches."""
    size = max(1, math.ceil(len(rows) / CURVE_POINTS))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    logarithms = [[math.log(max(row["loss"], LEAST_LOSS)) for row in part] for part in parts]
    return [
        (part[-1]["tokens"], float(f"{math.exp(fmean(own)):.4g}"))
        for part, own in zip(parts, logarithms, strict=True)
    ]


def _made(read: ReadRun) -> float:
    assert read.facts.store is not None
    return (read.facts.store.folder / "run.json").stat().st_mtime


def _events(reads: Iterable[ReadRun], evidence: Evidence) -> list[dict[str, Any]]:
    """What happened last, latest first."""
    found: list[dict[str, Any]] = []
    for read in reads:
        run, store = read.facts, read.facts.store
        assert store is not None
        who = {"arm": run.arm, "rate": run.learning_rate, "seed": run.seed}
        found.append({**who, "at": _made(read), "kind": "began"})
        for point in read.points:
            files = [store.evaluation(point.step, task) for task in point.results]
            at = max(file.stat().st_mtime for file in files)
            found.append({**who, "at": at, "kind": "measured", "budget": point.budget})
        failed = store.folder / "failed.json"
        if failed.is_file():
            found.append({**who, "at": failed.stat().st_mtime, "kind": run.state})
    return sorted(found, key=lambda one: -one["at"])[:EVENTS]
