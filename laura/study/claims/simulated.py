"""Simulated studies: a recipe and a truth become what a study folder would hold. No torch.

The judge is calibrated on them (`scripts/calibrate.py`), and `laura plan` asks of them
whether a design could speak: the same claims that will be judged, of a study in which every
arm learns, forgets, and is best inside its list. What cannot speak even there cannot speak at
all. Every item is right or wrong by chance: its own hardness, what an arm does to it, the
luck of the run, and the truth of the arm at its rate and budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from laura.evals.tasks import TASKS
from laura.models.families import LLAMA
from laura.recipe.sections import Arm, Recipe
from laura.results.schema import Analysis, CheckpointSpectra, DiversityRow, MatrixSpectra
from laura.results.statistics import ALPHA, Estimate
from laura.results.task_result import VALIDATION, Item, Metric, TaskResult
from laura.study.claims.answer import amount, compare_pair, main_pair
from laura.study.claims.judgement import judge_claims
from laura.study.claims.settings import Setting
from laura.study.evidence import Evidence, Point, RunFacts, result_names
from laura.study.summary import evidence_of

CHOICES = 4  # of a question with choices; guessing is a quarter
TOKENS = 10

Truth = Callable[[str, int, int], float]
"""Arm, place of the rate in its list, place of the budget: what is true there."""


@dataclass(frozen=True)
class SimulatedWorld:
    """What is true of a simulated study.

    Attributes:
        recipe: The study; its tasks' scores are shares.
        learnt: Chance that a learning item is right.
        kept: Chance that a source item is right.
        validation: Validation loss.
        base_learnt: The base's chance on learning items.
        base_kept: The base's chance on source items.
        items: Questions a task.
        luck: Standard deviation of a run's own luck, in each measure.
        validation_luck: The same of its validation loss.
        hardness: How much items differ, for every model alike.
        interaction: How much items differ in what an arm does to them.
        analysis: What analysis.json would hold; given the evidence and the generator.
    """

    recipe: Recipe
    learnt: Truth
    kept: Truth
    validation: Truth
    base_learnt: float = 0.1
    base_kept: float = 0.85
    items: int = 100
    luck: float = 0.03
    validation_luck: float = 0.003
    hardness: float = 0.2
    interaction: float = 0.1
    analysis: Callable[[Evidence, np.random.Generator], Analysis] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def simulate(
    world: SimulatedWorld,
    draw: np.random.Generator,
    name: str = "simulated",
    fresh: Sequence[tuple[str, float, Sequence[int]]] = (),
) -> Setting:
    """Draw one study of a world.

    Args:
        world: What is true.
        draw: The generator.
        name: Of the setting.
        fresh: Arm, rate and seeds of configurations that were confirmed.
    """
    recipe = world.recipe
    budgets = list(recipe.budget.listed)
    seeds = recipe.seeds[:1] if recipe.search.seeds_value == "first" else recipe.seeds
    lists = {arm: rates_of(own, recipe) for arm, own in recipe.arms.items()}
    wanted = [
        (arm, rate, seed)
        for arm, own in recipe.arms.items()
        for rate in lists[arm]
        for seed in (recipe.seeds if own.external else seeds)
    ]
    wanted += [(arm, rate, seed) for arm, rate, own in fresh for seed in own]
    scores = _SimulatedScores(world, list(recipe.arms), draw)
    runs, points = [], []
    for arm, rate, seed in wanted:
        marks: list[dict[str, Any]] = [
            {"budget": b, "step": n + 1, "tokens": 1000 * (n + 1), "supervised_tokens": 500}
            for n, b in enumerate(budgets)
        ]
        known = {"id": f"{arm}-{rate:g}-{seed}", "arm": arm, "learning_rate": rate, "seed": seed,
                 "points": marks}  # fmt: skip
        runs.append(RunFacts(known, "done"))
        place = lists[arm].index(rate)
        for mark, results in zip(marks, scores.run(arm, place, len(budgets)), strict=True):
            points.append(Point(known, results=results, **mark))
    facts = {
        "base": {"model": "simulated", "fingerprint": "simulated", "parameters": 1},
        "trainable_parameters": dict.fromkeys(recipe.arms, 1),
        **world.facts,
    }
    evidence = evidence_of(recipe, facts, scores.base(), runs, points)
    analysis = world.analysis(evidence, draw) if world.analysis else None
    setting = Setting(name, evidence, analysis)
    for result, right in scores.drawn:
        setting.remember(result, tuple(range(len(right))), right.astype(float))
    return setting


class _SimulatedScores:
    """The items of one study and every model's answers to them."""

    def __init__(
        self, world: SimulatedWorld, arms: Sequence[str], draw: np.random.Generator
    ) -> None:
        self._world, self._draw = world, draw
        # A choice within a bound of forgetting, or by learning, is made item by item.
        self._whole = world.recipe.search.max_forgetting is not None or (
            world.recipe.search.sampler != "grid" or bool(world.recipe.search.families)
        )
        # What was drawn, so that nobody needs to read it out of the items again.
        self.drawn: list[tuple[TaskResult, np.ndarray[Any, Any]]] = []
        recipe = world.recipe
        self._learning = result_names(recipe.measure.learning)
        self._source = result_names(recipe.measure.forgetting)
        tasks = [*self._learning, *self._source]
        self._hard = {task: draw.normal(0, world.hardness, world.items) for task in tasks}
        self._own = {
            (task, arm): draw.normal(0, world.interaction, world.items)
            for task in tasks
            for arm in arms
        }

    def base(self) -> dict[str, TaskResult]:
        """The base's results."""
        world = self._world
        found = {task: self._result(task, world.base_learnt) for task in self._learning}
        return found | {task: self._result(task, world.base_kept) for task in self._source}

    def run(self, arm: str, place: int, budgets: int) -> list[dict[str, TaskResult]]:
        """One run's results at every budget: its luck is the same at all of them."""
        world = self._world
        luck = self._draw.normal(0, world.luck, 2)
        loss_luck = self._draw.normal(0, world.validation_luck)
        found = []
        for at in range(budgets):
            learnt, kept = world.learnt(arm, place, at), world.kept(arm, place, at)
            results = {t: self._result(t, learnt + luck[0], arm) for t in self._learning}
            results |= {t: self._result(t, kept + luck[1], arm) for t in self._source}
            results[VALIDATION] = _loss(world.validation(arm, place, at) + loss_luck)
            found.append(results)
        return found

    def _result(self, task: str, mean: float, arm: str | None = None) -> TaskResult:
        own = 0.0 if arm is None else self._own[task, arm]
        chance = np.clip(mean + self._hard[task] + own, 0, 1)
        known = TASKS.get(task)
        if known is not None and known.kind in ("loss", "divergence"):
            return _losses(task, arm or "base", 3.0 - 2.0 * chance)
        right = self._draw.random(len(chance)) < chance
        # A run's items are given to the setting as they are: to write and read them by item is
        # most of the time, and has tests of its own.
        result = _answers(task, arm or "base", right, whole=self._whole or arm is None)
        self.drawn.append((result, right))
        return result


def rates_of(arm: Arm, recipe: Recipe) -> list[float]:
    """The rates that an arm is simulated at: its list, five of a search's range, or as made."""
    if arm.external is not None:
        return sorted({point.learning_rate for point in arm.external})
    rates = sorted(arm.learning_rates)
    if recipe.search.sampler == "grid" or rates[0] == rates[-1]:
        return rates
    return [rates[0] * (rates[-1] / rates[0]) ** (step / 4) for step in range(5)]


def _answers(task: str, model: str, right: np.ndarray[Any, Any], whole: bool) -> TaskResult:
    known = TASKS.get(task)
    metric = known.metric if known else "acc"
    items: list[Item] = []
    if whole:
        extra = {"loglikelihoods": [0.0] * CHOICES} if known and known.kind == "choice" else {}
        items = [{"index": i, metric: int(x), **extra} for i, x in enumerate(right)]
    n, value = len(right), float(right.mean())
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    return TaskResult(task, "1", model, n, {metric: Metric(value, stderr, True)}, items)


def _losses(task: str, model: str, nats: np.ndarray[Any, Any]) -> TaskResult:
    metric = TASKS[task].metric
    items: list[Item] = [
        {"index": i, "nats": float(x) * TOKENS, "tokens": TOKENS, "bytes": TOKENS, metric: float(x)}
        for i, x in enumerate(nats)
    ]
    found = Metric(float(nats.mean()), float(nats.std(ddof=1)) / math.sqrt(len(nats)), False)
    return TaskResult(task, "1", model, len(nats), {metric: found}, items)


def _loss(value: float) -> TaskResult:
    return _losses(VALIDATION, "simulated", np.array([value, value]))


# ----- what a recipe could decide -----

LUCK = 0.03  # of a run: as measured on the micro laboratory
ITEMS, STUDIES = 200, 5


def could_decide(recipes: Mapping[str, Recipe], width: int) -> dict[str, Any]:
    """Which claims a recipe, or the settings of a series together, could judge.

    Args:
        recipes: Each setting under its name.
        width: Fewest directions of a matrix of the base.

    Returns:
        `{"claims": [{"id", "statement", "missing": [words]}], "smallest": {...} | null}`:
        smallest is the difference in forgetting that would be shown about half of the times,
        tuned and at equal learning, by the median interval of simulated studies.
    """
    draw = np.random.default_rng(0)
    settings = [simulate(_going_well(own, width), draw, name) for name, own in recipes.items()]
    claims = judge_claims(settings)
    rows = [
        {"id": one.id, "statement": one.statement, "missing": one.missing}
        for one in claims
    ]  # fmt: skip
    tested = sum(one.p is not None for one in claims)
    smallest = None
    if len(recipes) == 1:
        (recipe,) = recipes.values()
        smallest = _smallest(recipe, width, max(1, tested), draw)
    return {"claims": rows, "smallest": smallest}


def claims_lines(found: dict[str, Any]) -> list[str]:
    """What could be decided, for the terminal."""
    able = [row for row in found["claims"] if not row["missing"]]
    lines = [f"Claims: {len(able)} of {len(found['claims'])} could be judged by this design"]
    if found["smallest"]:
        sizes = found["smallest"]
        told = [f"{amount(sizes[key], 'share')} {words}" for key, words in
                (("forgetting", "tuned"), ("equal_learning", "at equal learning"))
                if sizes.get(key) is not None]  # fmt: skip
        if told:
            lines.append(
                f"  smallest difference in forgetting that it would show about half of the times: "
                f"{', '.join(told)} (run luck of {amount(LUCK, 'share')} taken)"
            )
    lines += [f"  not {row['id']}: {row['missing'][0]}" for row in found["claims"]
              if row["missing"]]  # fmt: skip
    return lines


def _going_well(recipe: Recipe, width: int) -> SimulatedWorld:
    """Every arm learns, forgets and is best in the middle of its list."""

    def away(arm: str, place: int) -> float:
        rates = rates_of(recipe.arms[arm], recipe)
        return place - (len(rates) - 1) / 2

    points = max(1, len(recipe.budget.listed))

    def grown(budget: int) -> float:
        """Share of what is learnt: all of it one point before the last, where there are three."""
        if points < 3:
            return (budget + 1) / points
        return 0.9 if budget == points - 1 else (budget + 1) / (points - 1)

    return SimulatedWorld(
        recipe,
        learnt=lambda arm, r, b: 0.2 + (0.5 - 0.04 * abs(away(arm, r))) * grown(b),
        kept=lambda arm, r, b: 0.75 - 0.04 * (away(arm, r) + 3) * (b + 1) / points,
        validation=lambda arm, r, b: 1 + 0.1 * (away(arm, r) - 0.1) ** 2,
        items=max(2, min(recipe.measure.limit or ITEMS, ITEMS)),
        luck=LUCK,
        validation_luck=1e-4,
        analysis=lambda evidence, draw: _analysis(evidence, width, draw),
    )


def _smallest(
    recipe: Recipe, width: int, tested: int, draw: np.random.Generator
) -> dict[str, float | None] | None:
    """The reach of the joint interval: a true difference so large is shown half of the times."""
    found: dict[str, list[float]] = {"forgetting": [], "equal_learning": []}
    for _ in range(STUDIES):
        setting = simulate(_going_well(recipe, width), draw)
        pair = main_pair(setting)
        if pair is None:
            return None
        told = compare_pair(setting, *pair, level=1 - ALPHA / tested)
        for key, values in found.items():
            effect = getattr(told, key)
            if effect is not None and effect.unit == "share":
                values.append((effect.interval[1] - effect.interval[0]) / 2)
    return {key: median(values) if values else None for key, values in found.items()}


def _analysis(evidence: Evidence, width: int, draw: np.random.Generator) -> Analysis:
    """Spectra and samples, where the recipe asks for them."""
    recipe = evidence.recipe
    budgets = recipe.budget.listed
    spectra, rows = [], []
    for point in filter(evidence.is_chosen, evidence.points):
        last = point.budget == budgets[-1]
        who = point.whose
        wanted = recipe.analysis.spectra == "all" or (recipe.analysis.spectra == "final" and last)
        if wanted and recipe.arms[point.arm].method == "full":
            luck = draw.normal(0, 1)
            matrices = [
                MatrixSpectra(name=f"{layer}.{module}", layer=layer, module=module,
                              shape=(width, width), rank={"90": max(1, round(width / 2 + luck))},
                              noise_rank={"90": 0.51 * width})
                for layer in range(4) for module in sorted(LLAMA.groups["all"])
            ]  # fmt: skip
            spectra.append(CheckpointSpectra(**who, step=point.step, matrices=matrices))
        for name, extra in recipe.measure.extras.items():
            if last and extra.samples > 1:
                n = min(extra.limit or ITEMS, ITEMS)
                rows.append(DiversityRow(
                    **who, extra=name, task=extra.task, samples=extra.samples,
                    distinct=Estimate(extra.samples / 2 + draw.normal(0, 0.3), 0.3, n),
                ))  # fmt: skip
    return Analysis(spectra=spectra, diversity=rows)
