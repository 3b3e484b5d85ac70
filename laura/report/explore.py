"""What the page's own script draws from: configurations, axes, questions, rows of evidence.

Numbers only: every word of judgement comes from the judge's files. The shapes stand on top of
`templates/chart.js`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from laura.report import formats
from laura.report.arms import Group, groups, representatives
from laura.results.schema import MEAN, Summary, TaskFacts
from laura.results.statistics import Estimate, cached_quantile

FEWEST_SEEDS = 3  # with which an interval holds the luck of seeds too


def drawing(summary: Summary, chance: dict[str, float]) -> dict[str, Any]:
    """Arms, axes and configurations of the trade-off.

    Args:
        summary: The study.
        chance: What guessing gets of a task, in points; how far a score can fall.
    """
    every = groups(summary)
    learning, forgetting = _measures(summary, chance)
    drawn = representatives(summary, {group.arm for group in every})
    return {
        "unit": summary.budget.unit,
        "arms": [
            {"name": arm.name, "method": arm.method, "shown": arm.name in drawn}
            for arm in summary.arms
        ],
        "x": learning,
        "y": forgetting,
        "configs": [_config(summary, group, learning, forgetting) for group in every],
    }


def _measures(
    summary: Summary, chance: dict[str, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The axes: what can be learnt, what can be forgotten, and how far it can fall."""
    floors = {
        name: 100 * summary.base.scores[name].value - level
        for name, level in chance.items()
        if name in summary.base.scores
    }
    accuracies = summary.accuracies
    if accuracies and all(name in floors for name in accuracies):
        floors[MEAN] = fmean(floors[name] for name in accuracies)

    def measure(name: str, verb: str, alone: bool) -> dict[str, Any]:
        task = summary.task(name)
        of = "mean of all tasks" if name == MEAN else task.short_title
        title = f"{formats.change_unit(task)} {verb}"
        floor = floors.get(name) if verb == "forgotten" else None
        return {"key": name, "title": title if alone else f"{title}, {of}", "name": of,
                "unit": formats.change_unit(task), "floor": floor}  # fmt: skip

    learnt = [name for name in summary.measure.learning if name in summary.tasks]
    forgot = dict.fromkeys([*summary.forgetting_measures, *accuracies])
    return (
        [measure(name, "learnt", len(learnt) == 1) for name in learnt],
        [measure(name, "forgotten", len(forgot) == 1 or name == MEAN) for name in forgot],
    )


def _config(
    summary: Summary, group: Group, learning: Sequence[Any], forgetting: Sequence[Any]
) -> dict[str, Any]:
    values = {}
    for side, verb in ((learning, True), (forgetting, False)):
        for one in side:
            task = summary.task(one["key"])
            found = formats.turned(group.change(task.name), task, verb)
            if found is not None:
                values[task.name] = _spread(found, task, len(group.seeds))
    scores = {
        task.name: _short(100 * found.value)
        for task in map(summary.task, (*summary.measure.learning, *summary.measure.forgetting))
        if task.is_accuracy and (found := group.value(task.name)) is not None
    }
    validation = group.value("validation_loss")
    return {
        "arm": group.arm,
        "rate": group.learning_rate,
        "budget": group.budget,
        "seeds": group.seeds,
        "tuned": any(point.selected for point in group.points),
        "values": values,
        "scores": scores,
        "validation": None if validation is None else _short(validation.value),
    }


def _spread(found: Estimate, task: TaskFacts, seeds: int) -> list[Any]:
    """Value, half of the 95 % interval, and whose luck it holds."""
    known = seeds >= FEWEST_SEEDS
    half = cached_quantile(0.975, seeds - 1 if known else 1e9) * found.stderr
    kind = "seeds" if known else "items"
    return [_short(found.value * task.scale), _short(half * task.scale), kind]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
