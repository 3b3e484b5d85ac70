"""What a study says in plain words, and what it does not say. No torch.

Arms are compared at their own best learning rate and the largest budget, item
by item, averaged over seeds. A difference counts as seen when it exceeds two
standard errors; the error holds both, that over items and that over seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from laura.results.statistics import (
    Estimate,
    Interval,
    mean_of_tasks,
    over_seeds,
    paired_difference,
    seed_error,
)
from laura.results.task_result import TaskResult, change
from laura.study.choosing import search_caveats, why_none
from laura.study.claims.settings import Setting
from laura.study.effects import TooThin
from laura.study.measures import leading
from laura.study.run_record import repeat_caveats
from laura.study.summary import Evidence, Point, item_means, mean_interval

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
        interval: Of the mean of several tasks: its bootstrap interval over items.
    """

    first: str
    second: str
    value: float
    stderr: float
    n: int
    interval: Interval | None = None

    @property
    def clear(self) -> bool:
        """Whether it exceeds two standard errors."""
        return abs(self.value) > CLEAR * self.stderr


def build_verdict(evidence: Evidence) -> dict[str, Any]:
    """What a study says: {"headline", "sentences", "others", "caveats"}.

    The headline compares the two arms that stand for full finetuning and LoRA, by the rule
    of `laura claims`; "sentences" tell of these two. "others" tell of every other arm, and
    compare it with the one of its own method.
    """
    arms = {name: _final_points(name, evidence) for name in evidence.recipe.arms}
    measured = {name: points for name, points in arms.items() if points}
    told = {name: _arm_sentence(name, points, evidence) for name, points in measured.items()}
    headline, pair, others = "No arm finished a run that could be measured.", list(told), []
    if len(measured) == 1:
        headline = f"Only {pair[0]} was measured, so there is nothing to compare."
    elif measured:
        pair = _leading_pair(list(measured), evidence)
        headline = _pair_sentence(pair[0], pair[1], measured, evidence)
        methods = {evidence.recipe.arms[name].method: name for name in reversed(pair)}
        for name in measured:
            if name not in pair:
                beside = methods.get(evidence.recipe.arms[name].method, pair[0])
                others += [told[name], _pair_sentence(beside, name, measured, evidence)]
    return {
        "headline": headline,
        "sentences": [told[name] for name in pair],
        "others": others,
        "caveats": _caveats(measured, evidence),
    }


def _leading_pair(measured: list[str], evidence: Evidence) -> list[str]:
    """Plain full finetuning and the LoRA most like it, in the recipe's order.

    The first two arms where one of them was not measured.
    """
    setting = Setting("", evidence)
    try:
        pair = {setting.full().name, setting.lora().name}
    except TooThin:
        return measured[:2]
    return [name for name in measured if name in pair] if pair <= {*measured} else measured[:2]


def compare_arms(task: str, first: list[Point], second: list[Point]) -> Difference | None:
    """Difference of two arms on one task, item by item; None if it was not measured."""
    sides = []
    for points in (first, second):
        results = [point.results[task] for point in points if task in point.results]
        if not results:
            return None
        sides.append(results)
    metric = leading(sides[0][0])
    over_items = paired_difference(item_means(sides[1], metric), item_means(sides[0], metric))
    over_seeds = [seed_error([r.metrics[metric].value for r in side]) for side in sides]
    value = _value(sides[0], metric) - _value(sides[1], metric)
    sign = 1.0 if sides[0][0].metrics[metric].higher_is_better else -1.0
    stderr = math.hypot(over_items.stderr, *over_seeds)
    return Difference(first[0].arm, second[0].arm, sign * value, stderr, over_items.n)


def compare_means(first: list[Point], second: list[Point], evidence: Evidence) -> Difference | None:
    """Difference of the mean of the measured accuracies; None if any is missing."""
    tasks = evidence.accuracies
    found = [compare_arms(task, first, second) for task in tasks]
    parts = [part for part in found if part is not None]
    if not parts or len(parts) < len(found):
        return None
    mean = mean_of_tasks([Estimate(p.value, p.stderr, p.n) for p in parts])
    sides = [_by_task(points, tasks) for points in (second, first)]
    interval = mean_interval(sides[0], sides[1])
    return Difference(first[0].arm, second[0].arm, mean.value, mean.stderr, mean.n, interval)


def _final_points(arm: str, evidence: Evidence) -> list[Point]:
    """An arm's points at each seed's best rate and the largest budget, one a seed."""
    budget = evidence.recipe.budget
    last = max(budget.tokens or budget.epochs or [0])
    fits = (p for p in evidence.points if p.arm == arm and evidence.is_chosen(p))
    return [p for p in fits if p.budget == last]


def _by_task(points: list[Point], tasks: list[str]) -> dict[str, list[TaskResult]]:
    return {t: [p.results[t] for p in points if t in p.results] for t in tasks}


def _value(results: list[TaskResult], metric: str) -> float:
    return sum(result.metrics[metric].value for result in results) / len(results)


def _arm_sentence(name: str, points: list[Point], evidence: Evidence) -> str:
    general = evidence.accuracies
    told = [
        (measure.title, _before_and_after([task], points, evidence))
        for task, measure in evidence.measures.items()
        if task not in general
    ]
    mean = _before_and_after(general, points, evidence)
    told.append((f"mean of {len(general)} general task{'s' * (len(general) > 1)}", mean))
    parts = [f"{title} {words}" for title, words in told if words]
    rate = points[0].learning_rate
    seeds = "1 seed" if len(points) == 1 else f"{len(points)} seeds"
    return f"{name} at its best rate {rate:g} ({seeds}): {'; '.join(parts)}."


def _before_and_after(tasks: list[str], points: list[Point], evidence: Evidence) -> str:
    """The mean of some tasks on base and arm, and its change with the error; "" if unmeasured."""
    measured = [p for p in points if all(task in p.results for task in tasks)]
    if not tasks or not measured or any(task not in evidence.base for task in tasks):
        return ""
    base, tuned = {t: [evidence.base[t]] for t in tasks}, _by_task(measured, tasks)
    metrics = {task: evidence.measures[task].metric for task in tasks}
    before, after = (
        sum(_value(side[t], metrics[t]) for t in tasks) / len(tasks) for side in (base, tuned)
    )
    changes = [
        mean_of_tasks([change(evidence.base[t], p.results[t], metrics[t]) for t in tasks])
        for p in measured
    ]
    moved = over_seeds(changes)
    words = f"{before:.3f} to {after:.3f}, change {moved.value:+.3f} ± {moved.stderr:.3f}"
    shares = all(evidence.measures[task].unit == "share" for task in tasks)
    return words + (f" ({_range(mean_interval(base, tuned))})" if shares else "")


def _range(interval: Interval) -> str:
    return f"{interval.level:.0%} over items {interval.low:+.3f} to {interval.high:+.3f}"


def _pair_sentence(
    first: str, second: str, measured: dict[str, list[Point]], evidence: Evidence
) -> str:
    task = evidence.learning[0]
    learnt = compare_arms(task, measured[first], measured[second])
    kept, where = _forgetting_difference(first, second, measured, evidence)
    learning_words = _words(
        learnt, "learnt more", f"on {evidence.measures[task].title}", "learning"
    )
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
    task = evidence.forgetting[0]  # no accuracy, or there would be a mean
    found = compare_arms(task, measured[first], measured[second])
    return found, f"by {evidence.measures[task].title}"


def _words(found: Difference | None, deed: str, where: str, subject: str) -> str:
    if found is None:
        return f"{subject} was not measured for both"
    size = f"{abs(found.value):.3f} ± {found.stderr:.3f}, n={found.n}"
    if found.interval is not None:
        size += f"; {found.first} minus {found.second}, {_range(found.interval)}"
    if not found.clear:
        return (
            f"in {subject}, {found.first} and {found.second} cannot be told apart {where} ({size})"
        )
    winner = found.first if found.value > 0 else found.second
    loser = found.second if found.value > 0 else found.first
    return f"{winner} {deed} than {loser} {where} ({size})"


def _caveats(measured: dict[str, list[Point]], evidence: Evidence) -> list[str]:
    recipe = evidence.recipe
    caveats, single, edges = [], [], []
    for name in recipe.arms:
        rates, best = evidence.rates(name), evidence.modal_rate(name)
        if best is None:
            caveats.append(f"{name} {why_none(name, evidence)}, so it is not compared.")
        elif len(rates) == 1:
            single.append(name)
        elif evidence.edge(name):
            edges.append(f"{name} ({best:g})")
    if single:
        were = "was" if len(single) == 1 else "were"
        caveats.append(f"{_listed(single)} {were} tried at one learning rate only.")
    if edges:
        told, tried = f"rate of {edges[0]} is", "its grid"
        if len(edges) > 1:
            told, tried = f"rates of {_listed(edges)} are", "their grids"
        tried = tried if recipe.search.sampler == "grid" else "those tried"
        caveats.append(f"The best {told} at the edge of {tried}: a better one may lie beyond.")
    caveats += search_caveats(evidence)
    fewest = min((len(points) for points in measured.values()), default=0)
    if fewest == 1:
        caveats.append("One seed: the difference between seeds is unknown.")
    elif fewest < 3:
        caveats.append(f"Only {fewest} seeds: the error over seeds is itself uncertain.")
    diverged = [run for run in evidence.runs if run.state == "diverged"]
    if diverged:
        named = ", ".join(sorted({f"{run.arm} at {run.learning_rate:g}" for run in diverged}))
        caveats.append(f"Diverged: {named}.")
    caveats += repeat_caveats((point.arm, point.mix) for point in evidence.points)
    caveats += _floor_caveats(evidence)
    return caveats


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _floor_caveats(evidence: Evidence) -> list[str]:
    task = evidence.learning[0]
    measure = evidence.measures[task]
    if not measure.is_accuracy or task not in evidence.base:
        return []
    values = [
        p.results[task].metrics[measure.metric].value for p in evidence.points if task in p.results
    ]
    if values and max(values) < 0.1:
        return [
            f"{measure.title} stays below 0.10 everywhere: it is near its floor and says "
            "little; look at the held-out losses."
        ]
    return []
