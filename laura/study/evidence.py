"""What a study holds, in memory: its runs, its measured points, what was chosen. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from laura.recipe.sections import Recipe
from laura.results.store import RunStore
from laura.results.task_result import VALIDATION, TaskResult
from laura.study.measures import Measure, measure_of, result_names


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
class Point:
    """One run at one budget point, with every result that exists.

    Attributes:
        run: The run's own record (run.json).
        budget: Tokens or epochs of the recipe's list.
        step: Optimiser steps taken.
        tokens: Tokens trained on so far.
        supervised_tokens: Of these, how many were learnt.
        results: Result of each task by name.
        mix: What was read of target and replay; empty where nothing is replayed.
    """

    run: dict[str, Any]
    budget: float
    step: int
    tokens: int
    supervised_tokens: int
    results: dict[str, TaskResult] = field(default_factory=dict)
    mix: dict[str, Any] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return str(self.run["arm"])

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return float(self.run["learning_rate"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.run["seed"])

    @property
    def validation(self) -> float | None:
        """Validation loss, nats per token; None if it was not measured."""
        found = self.results.get(VALIDATION)
        return found.metrics["nats_per_token"].value if found else None


@dataclass(frozen=True)
class RunFacts:
    """One run: what was to be trained, and how it ended.

    Attributes:
        record: Its run.json.
        state: As `RunStore.state`.
        reason: Why it diverged or was stopped; None where it was not.
        store: Its folder; None where the run stands in memory alone.
    """

    record: dict[str, Any]
    state: str
    reason: str | None = None
    store: RunStore | None = None

    @property
    def id(self) -> str:
        """Its ID."""
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
    """

    recipe: Recipe
    facts: dict[str, Any]
    base: dict[str, TaskResult]
    runs: list[RunFacts]
    points: list[Point]
    confirming_runs: list[RunFacts] = field(default_factory=list)
    confirming: list[Point] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)

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
