"""What a study holds, in memory: its tasks, runs, measured points, what was chosen. No torch.

Of Laura's own tasks the table tells title, leading metric, unit and direction. Of lm-eval's and
the user's the results tell, since only they know it; their titles and versions were written to
`study.json` when the study was opened, under "tasks": {NAME: {"title", "version"}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from laura.evals.tasks import TASKS
from laura.recipe.sections import Recipe
from laura.recipe.tasks import result_name
from laura.results.statistics import Estimate
from laura.results.store import RunStore
from laura.results.task_result import VALIDATION, TaskResult
from laura.results.units import budget_text
from laura.study.steering import Steering

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


def score_of(result: TaskResult) -> Estimate:
    """Its leading metric."""
    metric = result.metrics[leading(result)]
    return Estimate(metric.value, metric.stderr, result.n)


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


@dataclass(frozen=True)
class Choice:
    """One arm's rates, and what was chosen among them.

    Attributes:
        rates: The list that was run, rising: the recipe's with what it has grown by, or
            those that a search drew.
        best: Seed to its best rate. A seed is missing where not every rate has ended
            with it, or where none is allowed.
        further: The rates that the list is to grow by next; empty where no seed's best
            lies at an end, or nothing may be added there.
    """

    rates: tuple[float, ...]
    best: dict[int, float]
    further: tuple[float, ...] = ()

    @property
    def edge(self) -> str:
        """`low`, `high` or `both` where some seed's best is at that end of several, or ""."""
        if len(self.rates) < 2:
            return ""
        low, high = (end in self.best.values() for end in (self.rates[0], self.rates[-1]))
        return "both" if low and high else "low" if low else "high" if high else ""


@dataclass(frozen=True)
class _Recorded:
    """What a run's own record says.

    Attributes:
        record: The run's run.json.
    """

    record: dict[str, Any]

    @property
    def whose(self) -> dict[str, Any]:
        """What tells it apart, as rows of files hold it."""
        return {"run": self.run_id, "arm": self.arm, "learning_rate": self.learning_rate,
                "seed": self.seed}  # fmt: skip

    @property
    def run_id(self) -> str:
        """ID of the run."""
        return str(self.record["id"])

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return str(self.record["arm"])

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return float(self.record["learning_rate"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.record["seed"])


@dataclass(frozen=True)
class Point(_Recorded):
    """One run at one budget point, with every result that exists.

    Attributes:
        budget: Tokens or epochs of the recipe's list.
        step: Optimiser steps taken.
        tokens: Tokens trained on so far.
        supervised_tokens: Of these, how many were learnt.
        results: Result of each task by name.
        mix: What was read of target and replay; empty where nothing is replayed.
    """

    budget: float
    step: int
    tokens: int
    supervised_tokens: int
    results: dict[str, TaskResult] = field(default_factory=dict)
    mix: dict[str, Any] = field(default_factory=dict)

    @property
    def whose(self) -> dict[str, Any]:
        """What tells it apart, as rows of files hold it."""
        return {**super().whose, "budget": self.budget}

    def __str__(self) -> str:
        return (
            f"{self.arm} at {self.learning_rate:g}, seed {self.seed}, "
            f"budget {budget_text(self.budget)} (run {self.run_id})"
        )

    @property
    def validation(self) -> float | None:
        """Validation loss, nats per token; None if it was not measured."""
        found = self.results.get(VALIDATION)
        return found.metrics["nats_per_token"].value if found else None


@dataclass(frozen=True)
class RunFacts(_Recorded):
    """One run: what was to be trained, and how it ended.

    Attributes:
        state: As `RunStore.state`.
        reason: Why it diverged or was stopped; None where it was not.
        store: Its folder; None where the run stands in memory alone.
    """

    state: str
    reason: str | None = None
    store: RunStore | None = None

    def metrics(self) -> list[dict[str, Any]]:
        """Its rows of metrics.jsonl, one a step."""
        return [] if self.store is None else self.store.metrics()


@dataclass(frozen=True)
class Evidence:
    """What a study holds, in memory; `summary.evidence_of` builds it.

    Attributes:
        recipe: The recipe that is carried out.
        facts: `study.json`: the base, and the tasks that are not Laura's own.
        base: The base's results by task.
        runs: Every run of the recipe's seeds, in order.
        points: Every measured point of these runs, in order.
        confirming_runs: The runs of fresh seeds, in order: they have no part in any choice.
        confirming: Every measured point of these.
        choices: Each arm's rates and what was chosen among them (see `choosing.py`).
        steering: What was added and skipped by hand.
    """

    recipe: Recipe
    facts: dict[str, Any]
    base: dict[str, TaskResult]
    runs: list[RunFacts]
    points: list[Point]
    confirming_runs: list[RunFacts] = field(default_factory=list)
    confirming: list[Point] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    steering: Steering = field(default_factory=Steering)

    @cached_property
    def best(self) -> dict[str, dict[int, float]]:
        """Arm to seed of the recipe to best rate; arms that have none are missing.

        A seed is missing where not every rate of the arm has ended with it.
        """
        return {arm: choice.best for arm, choice in self.choices.items() if choice.best}

    def rates(self, arm: str) -> list[float]:
        """The list of rates that an arm was or is to be run at, rising."""
        return list(self.choices[arm].rates)

    def edge(self, arm: str) -> str:
        """`low`, `high` or `both` where some seed's best is at that end of several rates, or ""."""
        return self.choices[arm].edge

    def is_chosen(self, point: Point) -> bool:
        """Whether a point is at the best rate of its arm with its seed."""
        return self.best.get(point.arm, {}).get(point.seed) == point.learning_rate

    def chosen_points(self, everywhere: bool) -> list[Point]:
        """The points at each seed's best rate: of every budget, or of the largest alone."""
        last = max(self.recipe.budget.listed, default=0)
        return [p for p in self.points if self.is_chosen(p) and (everywhere or p.budget == last)]

    @property
    def learning(self) -> list[str]:
        """Results of the learning tasks by name, the leading one first."""
        return result_names(self.recipe.measure.learning)

    @property
    def forgetting(self) -> list[str]:
        """Results of the forgetting tasks by name."""
        return result_names(self.recipe.measure.forgetting)

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """What is known of every task of learning and forgetting."""
        sides = [self.base, *(point.results for point in self.points)]
        facts = self.facts.get("tasks", {})
        return {
            name: measure_of(name, [s[name] for s in sides if name in s], facts.get(name, {}))
            for name in (*self.learning, *self.forgetting)
        }

    @property
    def accuracies(self) -> list[str]:
        """Forgetting tasks that are shares of right answers; their mean is the forgetting score."""
        return [name for name in self.forgetting if self.measures[name].is_accuracy]
