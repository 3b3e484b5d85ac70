"""All tables of a study, rebuilt from its folder alone: `summary.json`. No torch.

Nothing here depends on the time or the machine, so a study that was killed and
continued gives the same summary as one that was not. Costs are in `cost.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import laura
from laura.recipe.sections import LoraArm, Recipe
from laura.results.schema import (
    MEAN,
    ArmRow,
    BudgetPoints,
    Costs,
    MeasuredTasks,
    PointRow,
    RunCost,
    RunRow,
    ScoredBase,
    Summary,
    TaskFacts,
)
from laura.results.statistics import (
    Estimate,
    mean_of_tasks,
)
from laura.results.store import StudyStore, read_json
from laura.results.task_result import VALIDATION, TaskResult, change
from laura.study.choosing import choices, search_table
from laura.study.evidence import (
    Evidence,
    Point,
    RunFacts,
    all_tasks,
    is_current,
    leading,
    result_names,
    score_of,
)
from laura.study.runs import is_of, read_record
from laura.study.steering import read_steering

CURVE_POINTS = 200


def gather(study: StudyStore, recipe: Recipe, only: Collection[str] | None = None) -> Evidence:
    """Read every result of the recipe's arms in a study folder.

    Args:
        study: The folder.
        recipe: Whose arms count.
        only: IDs of the runs to read; None for all.

    Raises:
        StoreError: a file is damaged.
    """
    facts = read_json(study.folder / "study.json")
    tasks, versions = result_names(all_tasks(recipe)), facts.get("tasks", {})
    base = _results(tasks, study.base_evaluation, versions)
    runs = []
    for store in study.runs():
        known = read_record(store) if only is None or store.folder.name in only else None
        if known is not None and is_of(known, recipe, facts):
            runs.append(RunFacts(known, store.state, store.reason, store))
    points = [point for run in runs for point in points_of(run, tasks, versions)]
    found = evidence_of(recipe, facts, base, runs, points)
    return replace(found, steering=read_steering(study.folder))


def points_of(run: RunFacts, tasks: Sequence[str], versions: dict[str, Any]) -> list[Point]:
    """Every measured point of a run that has a folder.

    Args:
        run: The run.
        tasks: Names of the results.
        versions: The "tasks" of `study.json`.
    """
    assert run.store is not None
    found = []
    for mark in run.record["points"]:
        results = _results(tasks, partial(run.store.evaluation, mark["step"]), versions)
        if results:
            found.append(Point(run.record, results=results, **mark))
    return found


def evidence_of(
    recipe: Recipe,
    facts: dict[str, Any],
    base: dict[str, TaskResult],
    runs: Iterable[RunFacts],
    points: Iterable[Point],
) -> Evidence:
    """What a study holds, from parts in memory: in order, fresh seeds apart. Pure.

    Args:
        recipe: The recipe; runs and points are of its arms.
        facts: The study's `study.json`.
        base: The base's results by task.
        runs: Every run, of any seed.
        points: Every measured point of these runs.
    """
    arms = list(recipe.arms)
    ordered = sorted(runs, key=lambda run: _order(run.record, arms))
    measured = sorted(points, key=lambda point: (*_order(point.record, arms), point.step))
    found = Evidence(
        recipe,
        facts,
        base,
        runs=[run for run in ordered if run.seed in recipe.seeds],
        points=[point for point in measured if point.seed in recipe.seeds],
        confirming_runs=[run for run in ordered if run.seed not in recipe.seeds],
        confirming=[point for point in measured if point.seed not in recipe.seeds],
    )
    return replace(found, choices=choices(found))


def build_summary(evidence: Evidence) -> Summary:
    """What was run and measured, as `summary.json` holds it."""
    recipe = evidence.recipe
    return Summary(
        name=recipe.name,
        domain=recipe.domain,
        regime=recipe.regime,
        laura=laura.__version__,
        base=ScoredBase(**evidence.facts["base"], scores=_scores(evidence.base, evidence)),
        measure=MeasuredTasks(learning=evidence.learning, forgetting=evidence.forgetting),
        tasks=_tasks(evidence),
        budget=BudgetPoints(
            unit="tokens" if recipe.budget.tokens else "epochs",
            points=list(recipe.budget.listed),
            mode=recipe.budget.points,
        ),
        arms=[_arm(name, evidence) for name in recipe.arms],
        search=search_table(evidence),
        runs=[_run(run, evidence) for run in evidence.runs],
        points=[_point(point, evidence) for point in evidence.points],
    )


def build_costs(evidence: Evidence, environment: dict[str, Any]) -> Costs:
    """What each run took on this machine, as `cost.json` holds it."""
    runs = []
    seconds = sum(result.seconds for result in evidence.base.values())
    for point in (*evidence.points, *evidence.confirming):
        seconds += sum(result.seconds for result in point.results.values())
    for run in (*evidence.runs, *evidence.confirming_runs):
        rows = run.metrics()
        if rows:
            speeds = sorted(row["tokens_per_second"] for row in rows)
            cost = RunCost(
                id=run.run_id,
                arm=run.arm,
                learning_rate=run.learning_rate,
                seed=run.seed,
                train_seconds=sum(row["seconds"] for row in rows),
                tokens_per_second=speeds[len(speeds) // 2],
                peak_memory_bytes=max(row["peak_memory_bytes"] for row in rows),
                flops=sum(row["flops"] for row in rows),
                cohort=max(row.get("cohort", 1) for row in rows),
            )
            runs.append(cost)
    return Costs(machine=environment, runs=runs, evaluation_seconds=seconds)


def _results(
    tasks: Sequence[str], place: Callable[[str], Path], facts: dict[str, Any]
) -> dict[str, TaskResult]:
    found = {task: TaskResult.read(place(task)) for task in tasks if place(task).is_file()}
    return {task: result for task, result in found.items() if is_current(result, facts)}


def _order(known: dict[str, Any], arms: list[str]) -> tuple[Any, ...]:
    budget = known["points"][0]["budget"] if known.get("points") else 0
    return (arms.index(known["arm"]), known["learning_rate"], known["seed"], budget)


def _tasks(evidence: Evidence) -> dict[str, TaskFacts]:
    """What every key among scores and changes means, `mean` and `validation_loss` too."""
    found = {
        name: TaskFacts(
            name=name,
            **asdict(measure),
            n=evidence.base[name].n if name in evidence.base else 0,
        )
        for name, measure in evidence.measures.items()
    }
    if parts := [found[name] for name in evidence.accuracies]:
        title = "Source tasks: " + ", ".join(part.short_title for part in parts)
        n = sum(part.n for part in parts)
        found[MEAN] = TaskFacts(name=MEAN, title=title, unit="share", higher_is_better=True, n=n)
    results = [p.results[VALIDATION] for p in evidence.points if VALIDATION in p.results]
    found[VALIDATION] = TaskFacts(
        name=VALIDATION,
        title="Validation loss",
        metric="nats_per_token",
        unit="nats per token",
        higher_is_better=False,
        n=max((result.n for result in results), default=0),
    )
    return found


def _scores(results: dict[str, TaskResult], evidence: Evidence) -> dict[str, Estimate]:
    """Leading scores by task, and the mean of the accuracies where all were measured."""
    return _with_mean({name: score_of(one) for name, one in results.items()}, evidence)


def _with_mean(estimates: dict[str, Estimate], evidence: Evidence) -> dict[str, Estimate]:
    """Add the mean of the accuracies (Biderman et al. 2024, section 3), if all are there."""
    tasks = evidence.accuracies
    if not tasks or any(task not in estimates for task in tasks):
        return estimates
    return {**estimates, MEAN: mean_of_tasks([estimates[task] for task in tasks])}


def _arm(name: str, evidence: Evidence) -> ArmRow:
    arm = evidence.recipe.arms[name]
    settings = arm.identity({"method", "learning_rates"})
    if isinstance(arm, LoraArm):
        settings["alpha"] = arm.alpha_value
    return ArmRow(
        name=name,
        method=arm.method,
        settings=settings,
        trainable_parameters=evidence.facts["trainable_parameters"][name],
        rates=evidence.rates(name),
        best=evidence.best.get(name, {}),
        edge=evidence.edge(name),
    )


def _run(run: RunFacts, evidence: Evidence) -> RunRow:
    rows = longest_path(run.metrics())
    stride = max(1, len(rows) // CURVE_POINTS)
    budgets = [mark["budget"] for mark in run.record["points"]]
    return RunRow(
        id=run.run_id,
        arm=run.arm,
        learning_rate=run.learning_rate,
        seed=run.seed,
        budget=budgets[0] if len(budgets) == 1 else None,
        state=run.state,
        reason=run.reason or "",
        loss_curve=[(row["tokens"], row["loss"]) for row in rows[::stride]],
        selected=evidence.best.get(run.arm, {}).get(run.seed) == run.learning_rate,
    )


def longest_path(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that lead to the last budget: the trunk, and only its last cooldown."""
    fork = max((r["step"] for r in rows if not r["leg"].startswith("branch")), default=0)
    return [r for r in rows if not r["leg"].startswith("branch") or r["step"] > fork]


def _point(point: Point, evidence: Evidence) -> PointRow:
    changes = {}
    for task in (*evidence.learning, *evidence.forgetting):
        if task in point.results and task in evidence.base:
            before, after = evidence.base[task], point.results[task]
            changes[task] = change(before, after, leading(before))
    return PointRow(
        **point.whose,
        tokens=point.tokens,
        supervised_tokens=point.supervised_tokens,
        mix=point.mix,
        step=point.step,
        selected=evidence.is_chosen(point),
        scores=_scores(point.results, evidence),
        changes=_with_mean(changes, evidence),
    )
