"""What is known of a study's tasks: title, leading metric, unit and direction. No torch.

Of Laura's own tasks the table tells. Of lm-eval's and the user's the results tell, since
only they know it; their titles and versions were written to `study.json` when the study
was opened, under "tasks": {NAME: {"title", "version"}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laura.evals.tasks import TASKS
from laura.recipe.sections import Recipe
from laura.recipe.tasks import result_name
from laura.results.task_result import VALIDATION, TaskResult

_RATIO_UNITS = {"nats_per_token": "nats per token", "nats_per_byte": "nats per byte"}


@dataclass(frozen=True)
class Measure:
    """One task of a study.

    Attributes:
        title: Name for tables and charts.
        metric: The metric that leads: the one charts and verdicts use; empty where
            nothing was measured that would tell.
        unit: `share`, `nats per token`, `nats per byte`, or `score` for a mean that is
            not a share.
        higher_is_better: Its direction.
    """

    title: str
    metric: str
    unit: str
    higher_is_better: bool

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of what is right, which can be averaged with others."""
        return self.unit == "share" and self.higher_is_better


def result_names(tasks: Iterable[str]) -> list[str]:
    """Names of the results of tasks as a recipe names them."""
    return [result_name(task) for task in tasks]


def all_tasks(recipe: Recipe) -> list[str]:
    """Every task a study measures, as the recipe names them, the validation loss first."""
    return [VALIDATION, *recipe.measure.learning, *recipe.measure.forgetting]


def leading(result: TaskResult) -> str:
    """The metric that leads: the table's, or else the result's first."""
    known = TASKS.get(result.task)
    return known.metric if known else next(iter(result.metrics))


def measure_of(name: str, results: Sequence[TaskResult], facts: Mapping[str, Any]) -> Measure:
    """What is known of a task.

    Args:
        name: Name of its result.
        results: What was measured, the base's first, if anything was.
        facts: Its entry of `study.json`; empty for Laura's own.
    """
    known = TASKS.get(name)
    if known:
        return Measure(known.title, known.metric, known.unit, known.higher_is_better)
    title = facts.get("title", name)
    if not results:
        return Measure(title, "", "score", True)
    metric = leading(results[0])
    higher = results[0].metrics[metric].higher_is_better
    title = title if metric in title else f"{title}, {metric}"
    return Measure(title, metric, _unit(results[0], metric), higher)


def _unit(result: TaskResult, metric: str) -> str:
    """Nothing states whether a metric is a share, so its values decide."""
    if metric in _RATIO_UNITS:
        return _RATIO_UNITS[metric]
    return "share" if all(0 <= v <= 1 for v in result.values(metric).values()) else "score"


def is_current(result: TaskResult, facts: Mapping[str, Any]) -> bool:
    """Whether a result is of the task as it stands now, not of a file since changed.

    Args:
        result: A result of the study.
        facts: The "tasks" of `study.json`.
    """
    known = facts.get(result.task)
    return known is None or result.version == known["version"]
