"""summary.json as typed values: what every chart, table and page is drawn from.

Reading is loose: what may be missing after a failed run is optional, what
nothing can be drawn without is demanded, and a wrong kind is an error that
names the field. No torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.errors import StoreError
from laura.recipe_tasks import LOSSES
from laura.report.fields import Fields
from laura.results.statistics import Estimate, mean_of_tasks
from laura.results.task_result import VALIDATION
from laura.store import StudyStore, read_json

FORMAT = 1
MEAN = "mean"
STATES = ("done", "diverged", "failed", "pruned", "open")


@dataclass(frozen=True)
class Task:
    """One thing that is measured.

    Attributes:
        name: Key in the summary, or `mean`, or `validation_loss`.
        title: What a reader calls it, such as "GSM8K, strict match".
        unit: `share`, `nats per token`, `nats per byte`, or `score` for any other mean.
        higher_is_better: Direction of goodness.
        n: Items (questions or documents); 0 where the summary does not say.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    n: int

    @property
    def is_share(self) -> bool:
        """Whether values are shares in [0, 1], shown as percentages."""
        return self.unit == "share"

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of what is right, which can be averaged with others."""
        return self.is_share and self.higher_is_better

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def short_title(self) -> str:
        """The title up to its first comma or colon."""
        return re.split("[,:]", self.title)[0].strip()

    @property
    def items(self) -> str:
        """What is counted by n, in words."""
        return "questions" if self.is_share else "documents" if "nats" in self.unit else "items"


@dataclass(frozen=True)
class Arm:
    """One way of adapting the base."""

    name: str
    method: str
    settings: dict[str, Any]
    trainable_parameters: int | None
    learning_rates: list[float]
    best_learning_rate: float | None
    best_at_edge: bool


@dataclass(frozen=True)
class Run:
    """One training; `loss_curve` holds (tokens, nats per supervised token)."""

    id: str
    arm: str
    learning_rate: float
    seed: int
    budget: float | None
    state: str
    reason: str
    loss_curve: list[tuple[float, float]]
    selected: bool


@dataclass(frozen=True)
class Point:
    """One measured checkpoint of one run.

    Attributes:
        step: Optimiser step, None where the summary does not say.
        scores: Task to value with its standard error over items.
        changes: Task (and `mean`) to tuned minus base, paired over items.
    """

    run: str
    arm: str
    learning_rate: float
    seed: int
    budget: float
    tokens: float
    step: int | None
    selected: bool
    scores: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]

    def value(self, name: str) -> Estimate | None:
        """Score on a task, on `mean`, or on `validation_loss`; None where not measured."""
        return self.scores.get(name)


@dataclass(frozen=True)
class Verdict:
    """What the study concludes, in plain language.

    Attributes:
        headline: The two arms that stand for the methods, compared.
        sentences: What is said of these two.
        others: What is said of every other arm.
        caveats: What must be borne in mind.
    """

    headline: str
    sentences: list[str]
    others: list[str]
    caveats: list[str]


@dataclass(frozen=True)
class Summary:
    """The whole of summary.json."""

    name: str
    domain: str
    regime: str
    laura: str
    base_model: str
    base_fingerprint: str
    base_parameters: int | None
    base_scores: Mapping[str, Estimate]
    learning: list[str]
    forgetting: list[str]
    tasks: Mapping[str, Task]
    budget_unit: str
    budget_points: list[float]
    budget_mode: str
    arms: list[Arm]
    runs: list[Run]
    points: list[Point]
    verdict: Verdict

    @property
    def primary(self) -> str | None:
        """The learning task that leads."""
        return self.learning[0] if self.learning else None

    @property
    def accuracies(self) -> list[str]:
        """Forgetting tasks whose accuracies make up `mean`."""
        return [name for name in self.forgetting if self.task(name).is_accuracy]

    @property
    def forgetting_measures(self) -> list[str]:
        """`mean` where there are accuracies, then all others, such as losses."""
        accuracies = self.accuracies
        others = [name for name in self.forgetting if name not in accuracies]
        return ([MEAN] if accuracies else []) + others

    def task(self, name: str) -> Task:
        """What a key means; `mean` and `validation_loss` are made up here."""
        if name in self.tasks:
            return self.tasks[name]
        if name == MEAN:
            parts = [self.task(part) for part in self.accuracies]
            title = "Forgetting mean: " + ", ".join(part.short_title for part in parts)
            found = [p.scores[MEAN].n for p in self.points if MEAN in p.scores]
            n = max(found, default=sum(part.n for part in parts))
            return Task(MEAN, title, "share", True, n)
        if name == VALIDATION:
            found = [p.scores[VALIDATION].n for p in self.points if VALIDATION in p.scores]
            n = max(found, default=0)
            return Task(VALIDATION, "Validation loss", "nats per token", False, n)
        loss, base = name in LOSSES, self.base_scores.get(name)
        unit = "nats per token" if loss else "share"
        return Task(name, name, unit, not loss, base.n if base else 0)

    def base(self, name: str) -> Estimate | None:
        """The base's score; None where it was not measured, as for `validation_loss`."""
        return self.base_scores.get(name)

    def change(self, point: Point, name: str) -> Estimate | None:
        """Tuned minus base in the task's own unit.

        The paired change of the summary where it is given. Otherwise the plain
        difference with the two standard errors added in squares, which is too
        large rather than too small.
        """
        if name in point.changes:
            return point.changes[name]
        tuned, base = point.value(name), self.base(name)
        if tuned is None or base is None:
            return None
        stderr = math.hypot(tuned.stderr, base.stderr)
        return Estimate(tuned.value - base.value, stderr, min(tuned.n, base.n))


def read_summary(study: Path) -> Summary:
    """Read and check STUDY/summary.json.

    Raises:
        StoreError: no such folder, no summary.json (with what to do), or a
            damaged one (with the field at fault).
    """
    if not study.is_dir():
        raise StoreError(f"{study} is not a folder; give the folder of a study, as in studies/NAME")
    file = StudyStore(study).summary_file
    if not file.is_file():
        raise StoreError(
            f"{study} has no summary.json, so there is nothing to report yet; finish the study "
            "with `laura compare RECIPE` (it continues where it stopped), then report again"
        )
    return parse_summary(read_json(file), str(file))


def parse_summary(value: Any, source: str = "summary") -> Summary:
    """Check the value of a summary.json and make it typed.

    Raises:
        StoreError: another format, or a field that is missing or of the wrong kind.
    """
    fields = Fields(value, "", source)
    fields.demand("format", "name", "arms", "runs", "points")
    if fields.number("format") != FORMAT:
        raise StoreError(
            f"{source} has format {fields.number('format'):g}, this Laura reads {FORMAT}; "
            "use the version of Laura that wrote it, or give `laura compare` again"
        )
    base, measure, budget = fields.nested("base"), fields.nested("measure"), fields.nested("budget")
    forgetting = measure.texts("forgetting")
    tasks = {
        name: _task(name, fields.nested("tasks").nested(name))
        for name in fields.nested("tasks").names
    }
    shares = [n for n in forgetting if (tasks[n].is_accuracy if n in tasks else n not in LOSSES)]
    verdict = fields.nested("verdict")
    parameters = base.optional_number("parameters")
    return Summary(
        name=fields.text("name"),
        domain=fields.optional_text("domain", "target"),
        regime=fields.optional_text("regime"),
        laura=fields.optional_text("laura"),
        base_model=base.optional_text("model", "base"),
        base_fingerprint=base.optional_text("fingerprint"),
        base_parameters=None if parameters is None else int(parameters),
        base_scores=_with_mean(_scores(base.nested("scores"), tasks), shares),
        learning=measure.texts("learning"),
        forgetting=forgetting,
        tasks=tasks,
        budget_unit=budget.optional_text("unit", "tokens"),
        budget_points=budget.numbers("points"),
        budget_mode=budget.optional_text("mode"),
        arms=[_arm(arm) for arm in fields.nested_list("arms")],
        runs=[_run(run) for run in fields.nested_list("runs")],
        points=[_point(point, tasks, shares) for point in fields.nested_list("points")],
        verdict=Verdict(
            verdict.optional_text("headline", "The summary holds no verdict."),
            verdict.texts("sentences"),
            verdict.texts("others"),
            verdict.texts("caveats"),
        ),
    )


def _task(name: str, fields: Fields) -> Task:
    loss = name in LOSSES
    unit = fields.optional_text("unit", "nats per token" if loss else "share")
    higher = fields.flag("higher_is_better") if fields.has("higher_is_better") else not loss
    n = int(fields.optional_number("n") or 0)
    return Task(name, fields.optional_text("title", name), unit, higher, n)


def _arm(fields: Fields) -> Arm:
    parameters = fields.optional_number("trainable_parameters")
    return Arm(
        name=fields.text("name"),
        method=fields.optional_text("method"),
        settings=fields.nested("settings").plain(),
        trainable_parameters=None if parameters is None else int(parameters),
        learning_rates=fields.numbers("learning_rates"),
        best_learning_rate=fields.optional_number("best_learning_rate"),
        best_at_edge=fields.flag("best_at_edge"),
    )


def _run(fields: Fields) -> Run:
    return Run(
        id=fields.text("id"),
        arm=fields.text("arm"),
        learning_rate=fields.number("learning_rate"),
        seed=int(fields.optional_number("seed") or 0),
        budget=fields.optional_number("budget"),
        state=fields.optional_text("state", "open"),
        reason=fields.optional_text("reason"),
        loss_curve=_curve(fields.sequence("loss_curve")),
        selected=fields.flag("selected"),
    )


def _curve(pairs: list[Any]) -> list[tuple[float, float]]:
    """Pairs of finite numbers; a diverged run may end in anything else, which is left out."""
    kept = []
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2:
            if all(isinstance(x, int | float) and math.isfinite(x) for x in pair):
                kept.append((float(pair[0]), float(pair[1])))
    return kept


def _point(fields: Fields, tasks: Mapping[str, Task], shares: list[str]) -> Point:
    scores = _scores(fields.nested("scores"), tasks)
    if fields.has(VALIDATION):
        scores[VALIDATION] = _estimate(fields.nested(VALIDATION), "value", 0)
    scores = _with_mean(scores, shares)
    changes = {}
    for side in (fields.nested("forgetting"), fields.nested("learning")):
        for name in side.names:
            n = scores[name].n if name in scores else 0
            if side.has(name):
                changes[name] = _estimate(side.nested(name), "change", n)
    tokens = fields.optional_number("tokens") or 0.0
    budget, step = fields.optional_number("budget"), fields.optional_number("step")
    return Point(
        run=fields.text("run"),
        arm=fields.text("arm"),
        learning_rate=fields.number("learning_rate"),
        seed=int(fields.optional_number("seed") or 0),
        budget=tokens if budget is None else budget,
        tokens=tokens,
        step=None if step is None else int(step),
        selected=fields.flag("selected"),
        scores=scores,
        changes=changes,
    )


def _scores(fields: Fields, tasks: Mapping[str, Task]) -> dict[str, Estimate]:
    return {
        name: _estimate(fields.nested(name), "value", tasks[name].n if name in tasks else 0)
        for name in fields.names
        if fields.has(name)
    }


def _estimate(fields: Fields, field: str, n: int) -> Estimate:
    given = fields.optional_number("n")
    stderr = fields.optional_number("stderr") or 0.0
    return Estimate(fields.number(field), stderr, n if given is None else int(given))


def _with_mean(scores: dict[str, Estimate], shares: list[str]) -> dict[str, Estimate]:
    """Add the mean of the accuracies that were measured (Biderman et al. 2024, section 3)."""
    parts = [scores[name] for name in shares if name in scores]
    return {**scores, MEAN: mean_of_tasks(parts)} if parts else scores
