"""What a study says in plain words, and what it does not say. No torch.

Arms are compared at their own best learning rate and the largest budget, item
by item, averaged over seeds. A difference counts as seen when it exceeds two
standard errors; the error holds both, that over items and that over seeds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from laura.evals.tasks import TASKS
from laura.results import RATIO_FIELDS, TaskResult
from laura.statistics import Estimate, mean_of_tasks, paired_difference, seed_error
from laura.study.summary import Evidence, Point, accuracies

CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Difference:
    """How one arm differs from another on one measure; positive: `first` is better.

    Attributes:
        first: Name of an arm.
        second: Name of the other.
        value: Difference, turned so that higher is better.
        stderr: The error over items and the error over seeds together.
        n: Items.
    """

    first: str
    second: str
    value: float
    stderr: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether it exceeds two standard errors."""
        return abs(self.value) > CLEAR * self.stderr


def build_verdict(evidence: Evidence) -> dict[str, Any]:
    """Headline, sentences and caveats of a study."""
    arms = {name: _final_points(name, evidence) for name in evidence.recipe.arms}
    measured = {name: points for name, points in arms.items() if points}
    sentences = [_arm_sentence(name, points, evidence) for name, points in measured.items()]
    headline = "No arm finished a run that could be measured."
    if len(measured) == 1:
        headline = f"Only {next(iter(measured))} was measured, so there is nothing to compare."
    elif measured:
        pairs = list(itertools.combinations(measured, 2))
        told = [_pair_sentence(first, second, measured, evidence) for first, second in pairs]
        headline, sentences = told[0], sentences + told[1:]
    return {
        "headline": headline,
        "sentences": sentences,
        "caveats": _caveats(measured, evidence),
    }


def compare_arms(
    task: str, first: list[Point], second: list[Point], better_is_higher: bool
) -> Difference | None:
    """Difference of two arms on one task, item by item; None if it was not measured."""
    metric = TASKS[task].metric
    sides = []
    for points in (first, second):
        results = [point.results[task] for point in points if task in point.results]
        if not results:
            return None
        sides.append(results)
    over_items = paired_difference(_mean_items(sides[1], metric), _mean_items(sides[0], metric))
    over_seeds = [seed_error([r.metrics[metric].value for r in side]) for side in sides]
    value = _value(sides[0], metric) - _value(sides[1], metric)
    sign = 1.0 if better_is_higher else -1.0
    stderr = math.hypot(over_items.stderr, *over_seeds)
    return Difference(first[0].arm, second[0].arm, sign * value, stderr, over_items.n)


def compare_means(first: list[Point], second: list[Point], evidence: Evidence) -> Difference | None:
    """Difference of the mean of the measured accuracies; None if any is missing."""
    tasks = accuracies(evidence.recipe)
    found = [compare_arms(task, first, second, True) for task in tasks]
    parts = [part for part in found if part is not None]
    if not parts or len(parts) < len(found):
        return None
    mean = mean_of_tasks([Estimate(p.value, p.stderr, p.n) for p in parts])
    return Difference(first[0].arm, second[0].arm, mean.value, mean.stderr, mean.n)


def _final_points(arm: str, evidence: Evidence) -> list[Point]:
    """An arm's points at its best rate and the largest budget, one a seed."""
    budget = evidence.recipe.budget
    last = max(budget.tokens or budget.epochs or [0])
    best = evidence.best.get(arm)
    fits = (p for p in evidence.points if p.arm == arm and p.learning_rate == best)
    return [p for p in fits if p.budget == last and p.seed in evidence.recipe.seeds]


def _mean_items(results: list[TaskResult], metric: str) -> dict[int, float]:
    """Every item's value, averaged over seeds; losses as nats a token of the document."""
    tables = []
    for result in results:
        if metric in RATIO_FIELDS:
            # Documents weigh by their tokens, so that the mean is the reported ratio.
            sums = result.sums(metric)
            average = sum(bottom for _, bottom in sums.values()) / len(sums)
            tables.append({index: top / average for index, (top, _) in sums.items()})
        else:
            tables.append(result.values(metric))
    return {index: sum(t[index] for t in tables) / len(tables) for index in tables[0]}


def _value(results: list[TaskResult], metric: str) -> float:
    return sum(result.metrics[metric].value for result in results) / len(results)


def _arm_sentence(name: str, points: list[Point], evidence: Evidence) -> str:
    recipe = evidence.recipe
    parts, general = [], accuracies(recipe)
    for task in (*recipe.measure.learning, *recipe.measure.forgetting):
        values = [p.results[task] for p in points if task in p.results]
        if values and task in evidence.base and task not in general:
            metric = TASKS[task].metric
            before = evidence.base[task].metrics[metric].value
            parts.append(f"{TASKS[task].title} {before:.3f} to {_value(values, metric):.3f}")
    tasks = [task for task in general if task in evidence.base]
    if tasks and all(t in p.results for p in points for t in tasks):
        before = sum(_value([evidence.base[t]], TASKS[t].metric) for t in tasks) / len(tasks)
        after = sum(_value([p.results[t] for p in points], TASKS[t].metric) for t in tasks) / len(
            tasks
        )
        parts.append(f"mean of {len(tasks)} general tasks {before:.3f} to {after:.3f}")
    rate = points[0].learning_rate
    seeds = "1 seed" if len(points) == 1 else f"{len(points)} seeds"
    return f"{name} at its best rate {rate:g} ({seeds}): {'; '.join(parts)}."


def _pair_sentence(
    first: str, second: str, measured: dict[str, list[Point]], evidence: Evidence
) -> str:
    leading = evidence.recipe.measure.learning[0]
    higher = TASKS[leading].higher_is_better
    learnt = compare_arms(leading, measured[first], measured[second], higher)
    kept, where = _forgetting_difference(first, second, measured, evidence)
    learning_words = _words(learnt, "learnt more", f"on {TASKS[leading].title}", "learning")
    sentence = f"{learning_words}; {_words(kept, 'forgot less', where, 'forgetting')}."
    # An arm's name keeps its spelling, our own words begin as a sentence does.
    own = sentence.startswith(("in ", "learning "))
    return sentence[0].upper() + sentence[1:] if own else sentence


def _forgetting_difference(
    first: str, second: str, measured: dict[str, list[Point]], evidence: Evidence
) -> tuple[Difference | None, str]:
    mean = compare_means(measured[first], measured[second], evidence)
    if mean is not None:
        return mean, "on the mean of the general tasks"
    task = evidence.recipe.measure.forgetting[0]  # a loss, or there would be a mean
    higher = TASKS[task].higher_is_better
    found = compare_arms(task, measured[first], measured[second], higher)
    return found, f"by {TASKS[task].title}"


def _words(found: Difference | None, deed: str, where: str, subject: str) -> str:
    if found is None:
        return f"{subject} was not measured for both"
    size = f"{abs(found.value):.3f} ± {found.stderr:.3f}, n={found.n}"
    if not found.clear:
        return (
            f"in {subject}, {found.first} and {found.second} cannot be told apart {where} ({size})"
        )
    winner = found.first if found.value > 0 else found.second
    loser = found.second if found.value > 0 else found.first
    return f"{winner} {deed} than {loser} {where} ({size})"


def _caveats(measured: dict[str, list[Point]], evidence: Evidence) -> list[str]:
    recipe = evidence.recipe
    caveats = []
    for name, arm in recipe.arms.items():
        rates, best = sorted(arm.learning_rates), evidence.best.get(name)
        if best is None:
            caveats.append(f"{name} has no finished run, so it is not compared.")
        elif len(rates) == 1:
            caveats.append(f"{name} was tried at one learning rate only.")
        elif best in (rates[0], rates[-1]):
            caveats.append(
                f"The best rate of {name}, {best:g}, is at the edge of its grid: a better one may "
                "lie beyond."
            )
    fewest = min((len(points) for points in measured.values()), default=0)
    if fewest == 1:
        caveats.append("One seed: the difference between seeds is unknown.")
    elif fewest < 3:
        caveats.append(f"Only {fewest} seeds: the error over seeds is itself uncertain.")
    diverged = [known for known, run in evidence.runs if run.state == "diverged"]
    if diverged:
        named = ", ".join(sorted({f"{k['arm']} at {k['learning_rate']:g}" for k in diverged}))
        caveats.append(f"Diverged: {named}.")
    caveats += _floor_caveats(evidence)
    return caveats


def _floor_caveats(evidence: Evidence) -> list[str]:
    task = evidence.recipe.measure.learning[0]
    if TASKS[task].unit != "share" or task not in evidence.base:
        return []
    values = [
        p.results[task].metrics[TASKS[task].metric].value
        for p in evidence.points
        if task in p.results
    ]
    if values and max(values) < 0.1:
        return [
            f"{TASKS[task].title} stays below 0.10 everywhere: it is near its floor and says "
            "little; look at the held-out losses."
        ]
    return []
