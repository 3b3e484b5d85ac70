"""Runs tasks on an engine, one after another, and keeps each result as it ends.

The same function measures base and tuned model, and several adapters at once. A
result that stands is not measured again, and of one that was begun every answer is
kept, so a measurement that was killed goes on at the next item.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.engine.requests import MeasuringEngine
from laura.evals.keeping import Keeper, partial_file
from laura.evals.kinds import (
    Material,
    Measured,
    Plan,
    check_name,
    covered,
    file_rows,
    plan_task,
)
from laura.results.errors import DataError, StoreError, UsageError
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults
from laura.results.task_result import TaskResult, summarise

__all__ = ["Material", "Subject", "check_name", "evaluate", "evaluate_all", "file_rows"]


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: Recorded in its results.
        out: Where a task's TASK.json stands.
        adapter: Name of the engine's adapter; None for the model itself.
    """

    name: str
    out: Callable[[str], Path]
    adapter: str | None = None


def evaluate(
    engine: MeasuringEngine,
    task_names: Sequence[str],
    material: Material,
    *,
    model_name: str,
    out: Callable[[str], Path],
    progress: Progress = SILENT,
) -> dict[str, TaskResult]:
    """Measure tasks on the engine's model; see `evaluate_all`."""
    subject = Subject(model_name, out)
    return evaluate_all(engine, task_names, material, [subject], progress=progress)[0]


def evaluate_all(
    engine: MeasuringEngine,
    task_names: Sequence[str],
    material: Material,
    subjects: Sequence[Subject],
    *,
    progress: Progress = SILENT,
    before: Callable[[list[tuple[Plan, int]]], None] | None = None,
) -> list[dict[str, TaskResult]]:
    """Measure tasks one after another on several models at once.

    Each TASK.json is written when its task ends. One that covers the same items in the
    same version is read instead of measured; one that does not is measured again and
    replaced.

    Args:
        engine: Runs the model and its adapters.
        task_names: Of the table of tasks, `lm_eval:NAME`, paths of a user's files, or
            extras of the `measure` section.
        material: Rows, documents and settings.
        subjects: What is measured.
        progress: Shows one bar a task.
        before: Told what will be measured, and on how many models, before it begins.

    Returns:
        For each subject: name of the result to result, in the order given.

    Raises:
        UsageError: an unknown task.
        DataError: a row or document cannot be measured, or there are fewer than
            two (no standard error).
        StoreError: a result there is damaged or of another model, or the folder
            cannot be written.
        DivergenceError: the model's numbers are not finite.
    """
    for name in task_names:
        check_name(name, material.section.extras)
    plans = [_planned(engine, name, material) for name in task_names]
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        raise UsageError(f"two tasks have one name among {', '.join(names)}; rename one's file")
    standing = [[_standing(plan, subject, progress) for subject in subjects] for plan in plans]
    left = [
        [subject for subject, one in zip(subjects, found, strict=True) if one is None]
        for found in standing
    ]
    if before is not None:
        before([(plan, len(models)) for plan, models in zip(plans, left, strict=True) if models])
    results: list[dict[str, TaskResult]] = [{} for _ in subjects]
    for plan, found, models in zip(plans, standing, left, strict=True):
        measured = iter(_measure(engine, plan, models, progress) if models else [])
        for place, one in enumerate(found):
            results[place][plan.name] = one or next(measured)
    return results


def _planned(engine: MeasuringEngine, name: str, material: Material) -> Plan:
    plan = plan_task(engine, name, material)
    if len(plan.covers) < 2:
        raise DataError(
            f"{name} has {len(plan.covers)} item(s), a standard error needs at least 2; raise "
            "the limit (measure.limit, measure.loss_documents, --limit) or give more rows"
        )
    return plan


def _standing(plan: Plan, subject: Subject, progress: Progress) -> TaskResult | None:
    """The result that stands, if it is the one wanted."""
    path, name = subject.out(plan.name), plan.name
    if not path.exists():
        return None
    found = TaskResult.read(path)
    if (found.task, found.model) != (name, subject.name):
        raise StoreError(
            f"{path} holds {found.task} of {found.model}, wanted is {name} of {subject.name}; "
            "choose another folder with --out, or delete the file"
        )
    if found.version == plan.version and covered(found.items) == list(plan.covers):
        # Left where an attempt was killed after its result stood.
        with disk_faults(path):
            partial_file(path).unlink(missing_ok=True)
        return found
    progress.say(
        f"{path} covers {found.n} items in version {found.version!r}, wanted are "
        f"{len(plan.covers)} in {plan.version!r}; {name} is measured again"
    )
    return None


def _measure(
    engine: MeasuringEngine, plan: Plan, subjects: Sequence[Subject], progress: Progress
) -> list[TaskResult]:
    """Measure one task on several models, and write each one's result."""
    start = time.perf_counter()
    files = {subject.adapter: partial_file(subject.out(plan.name)) for subject in subjects}
    identity = {
        subject.adapter: {"task": plan.name, "version": plan.version, "model": subject.name}
        for subject in subjects
    }
    results = []
    with _titled(engine, plan.title, progress), Keeper(engine, files, identity) as keeper:
        measured = plan.measure(keeper, [subject.adapter for subject in subjects])
        seconds = (time.perf_counter() - start) / len(subjects)
        for subject, found in zip(subjects, measured, strict=True):
            result = _result(plan, subject, found, seconds)
            result.write(subject.out(plan.name), found.samples)
            results.append(result)
    # Not before every result stands: what one of them lacks is found in its file.
    for path in files.values():
        with disk_faults(path):
            path.unlink(missing_ok=True)
    return results


def _result(plan: Plan, subject: Subject, found: Measured, seconds: float) -> TaskResult:
    try:
        metrics = {
            metric: summarise(found.items, metric, up) for metric, up in found.directions.items()
        }
    except ValueError as error:
        raise DataError(f"{plan.name} cannot be summed up: {error}") from error
    return TaskResult(
        plan.name, plan.version, subject.name, len(found.items), metrics, found.items, seconds
    )


class _Titled:
    """A `Progress` whose bars carry the task's title."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    def bar(self, title: str, total: float, unit: str = "") -> Any:
        return self.progress.bar(f"{self.title}: {title}", total, unit)

    def say(self, text: str) -> None:
        self.progress.say(text)


@contextmanager
def _titled(engine: MeasuringEngine, title: str, progress: Progress) -> Iterator[None]:
    """While a task runs, the engine's bars are the task's."""
    before = engine.progress
    engine.progress = _Titled(progress, title)
    try:
        yield
    finally:
        engine.progress = before
