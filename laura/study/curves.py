"""A study's curves of learning and forgetting under the bootstrap, from its items. No torch.

Items and seeds are drawn anew: the items of a task together for all models, so that what
models share cancels; the seeds of an arm at one rate together for all its budgets, so that
a lucky run stays lucky.

Shapes: B draws, the first as measured.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from laura.analysis import efficiency, tradeoff
from laura.analysis.resampling import DRAWS, Array, ItemTable, resample_items, resample_seeds
from laura.analysis.tradeoff import Cell
from laura.results.task_result import RATIO_FIELDS, TaskResult
from laura.study.summary import Evidence, Point

MOST_TOLD = 3  # points that lack one task, in words
MEAN = "mean"  # of the accuracies among the forgetting tasks


@dataclass(frozen=True)
class Scores:
    """One score of the base and of every point that has it, turned so that higher is better.

    Attributes:
        base: (B,).
        points: Place in `evidence.points` to (B,).
        items: How many items it was measured on.
        sign: -1 where the score itself is better when it is lower.
    """

    base: Array
    points: dict[int, Array]
    items: int
    sign: float


def build_curves(evidence: Evidence, gaps: list[str]) -> dict[str, Any]:
    """The parts `tradeoff` and `efficiency` of analysis.json, and `forgotten` for the drift.

    Args:
        evidence: The study.
        gaps: What is missing is added here, in words.

    Returns:
        {"tradeoff": ... or None, "efficiency": [...], "forgetting": name,
        "forgotten": {place in `evidence.points`: what it forgot}}.
    """
    learnt = {task: _scores(task, evidence, gaps) for task in evidence.learning}
    forgetting = MEAN if evidence.accuracies else evidence.forgetting[0]
    kept = _kept(forgetting, evidence, gaps)
    forgotten = {} if kept is None else {i: kept.base - own for i, own in kept.points.items()}
    leading = learnt[evidence.learning[0]]
    found = None
    if leading is not None and kept is not None:
        found = _tradeoff(evidence, leading, forgotten, kept.items, gaps)
        found = {"learning": evidence.learning[0], "forgetting": forgetting, **found}
    return {
        "tradeoff": found,
        "efficiency": [
            row
            for task, scores in learnt.items()
            if scores is not None
            for row in _efficiency(task, scores, evidence, gaps)
        ],
        "forgetting": forgetting,
        "forgotten": {place: float(own[0]) for place, own in forgotten.items()},
    }


def _tradeoff(
    evidence: Evidence,
    learnt: Scores,
    forgotten: Mapping[int, Array],
    items: int,
    gaps: list[str],
) -> dict[str, Any]:
    arms = {arm: _cells(arm, evidence, learnt.points, forgotten) for arm in evidence.recipe.arms}
    areas = tradeoff.areas(arms, learnt.base)
    if not areas and any(arms.values()):
        gaps.append("no arm both learnt and forgot, so there is no area of the trade-off")
    for arm, cells in arms.items():
        if len(cells) == 1:
            gaps.append(f"{arm} has one point only, so it has no curve of learning and forgetting")
    return {
        "front": _front(evidence, learnt, forgotten),
        "area": areas,
        "matched": [
            row
            for first, second in itertools.combinations(arms, 2)
            for row in _matched(first, second, arms, learnt, items, forgotten, evidence, gaps)
        ],
    }


def _front(
    evidence: Evidence, learnt: Scores, forgotten: Mapping[int, Array]
) -> list[dict[str, Any]]:
    places = [place for place in learnt.points if place in forgotten]
    pairs = [(float(learnt.points[i][0]), float(forgotten[i][0])) for i in places]
    rows = []
    for number in tradeoff.pareto_front(pairs):
        point = evidence.points[places[number]]
        learning = learnt.sign * pairs[number][0]
        rows.append({**_named(point), "learning": learning, "forgetting": pairs[number][1]})
    return rows


def _matched(
    first: str,
    second: str,
    arms: Mapping[str, Sequence[Cell]],
    learnt: Scores,
    items: int,
    forgotten: Mapping[int, Array],
    evidence: Evidence,
    gaps: list[str],
) -> list[dict[str, Any]]:
    rows = []
    for curve, method in (("best_rate", tradeoff.BEST_RATE), ("grid", tradeoff.GRID)):
        sides = [list(arms[arm]) for arm in (first, second)]
        if curve == "best_rate":
            sides = [
                _cells(arm, evidence, learnt.points, forgotten, chosen=True)
                for arm in (first, second)
            ]
        found = tradeoff.match(sides[0], sides[1])
        if not found and curve == "grid":
            gaps.append(f"{first} and {second} share no level of learning to be compared at")
        for one in found:
            value = asdict(one)
            forgot = list(value.pop("forgotten"))
            level = value.pop("level")
            gain, score = level - float(learnt.base[0]), learnt.sign * level
            rows.append(
                {
                    "arms": [first, second],
                    "level": gain,
                    "score": score,
                    "forgetting": forgot,
                    **value,
                    "n": items,
                    "curve": curve,
                    "method": method,
                }
            )
    return rows


def _efficiency(
    task: str, learnt: Scores, evidence: Evidence, gaps: list[str]
) -> list[dict[str, Any]]:
    recipe = evidence.recipe
    curves = {}
    for arm in evidence.best:
        own = _cells(arm, evidence, learnt.points, learnt.points, chosen=True)
        if own:
            curves[arm] = own
    if not curves:
        return []
    budgets = {tuple(cell.budget for cell in own) for own in curves.values()}
    if len(budgets) > 1:
        told = "; ".join(
            f"{arm} at {', '.join(f'{cell.budget:g}' for cell in own)}"
            for arm, own in curves.items()
        )
        gaps.append(f"{task} was measured at different budgets: {told}")
    most = max(float(cell.learnt[0]) for own in curves.values() for cell in own)
    base = float(learnt.base[0])
    if most - base <= tradeoff.ROUNDING:
        gaps.append(f"no arm improved {task}, so nothing is told of how fast one does")
        return []
    unit = "tokens" if recipe.budget.tokens else "epochs"
    rows = []
    for share in efficiency.LEVELS:
        level = base + share * (most - base)
        for arm, own in curves.items():
            scores = np.stack([cell.learnt for cell in own], 1)
            found = efficiency.needed([cell.budget for cell in own], scores, level)
            rows.append(
                {
                    "arm": arm,
                    "task": task,
                    "level": learnt.sign * level,
                    "share": share,
                    "unit": unit,
                    "needed": found.value,
                    "at_most": found.at_most,
                    "interval": list(found.interval) if found.interval else None,
                    "reached": found.reached,
                    "learning_rate": own[0].learning_rate,
                    "seeds": min(cell.seeds for cell in own),
                    "n": learnt.items,
                }
            )
    return rows


def _cells(
    arm: str,
    evidence: Evidence,
    learnt: Mapping[int, Array],
    forgotten: Mapping[int, Array],
    chosen: bool = False,
) -> list[Cell]:
    """An arm's cells: its points of one rate and budget, averaged over resampled seeds.

    With `chosen` those of each seed's best rate, one cell a budget; they are told under the
    rate that is best with most seeds.
    """
    groups: dict[tuple[float, float], dict[int, int]] = {}
    modal = evidence.modal_rate(arm)
    for place, point in enumerate(evidence.points):
        if point.arm == arm and place in learnt and place in forgotten:
            if not chosen:
                groups.setdefault((point.learning_rate, point.budget), {})[point.seed] = place
            elif modal is not None and evidence.is_chosen(point):
                groups.setdefault((modal, point.budget), {})[point.seed] = place
    cells = []
    for (rate, budget), by_seed in sorted(groups.items()):
        seeds = sorted(by_seed)
        # Drawn by arm, rate and seeds alone: the same for every budget of these runs.
        generator = _generator(f"{arm}/{rate!r}/{seeds}")
        weights = resample_seeds(len(seeds), DRAWS, generator)
        sides = [
            np.stack([table[by_seed[seed]] for seed in seeds], 1) for table in (learnt, forgotten)
        ]
        means = [(side * weights).sum(axis=1) for side in sides]
        cells.append(Cell(rate, budget, len(seeds), means[0], means[1]))
    return cells


def _kept(name: str, evidence: Evidence, gaps: list[str]) -> Scores | None:
    """The forgetting score: one task's, or the plain mean of the accuracies."""
    if name != MEAN:
        return _scores(name, evidence, gaps)
    parts = [_scores(task, evidence, gaps) for task in evidence.accuracies]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    places = set.intersection(*(set(part.points) for part in whole))
    k = len(whole)
    points = {i: np.asarray(sum(part.points[i] for part in whole) / k) for i in sorted(places)}
    base = np.asarray(sum(part.base for part in whole) / k)
    return Scores(base, points, sum(part.items for part in whole), 1.0)


def _scores(task: str, evidence: Evidence, gaps: list[str]) -> Scores | None:
    """A task's scores; points that lack it, or have it not whole or of other items, are gaps."""
    measure, base = evidence.measures[task], evidence.base.get(task)
    fields = RATIO_FIELDS.get(measure.metric, (measure.metric,))
    first = None if base is None else _columns(base, fields)
    if base is None or first is None:
        gaps.append(f"{task} was not measured on the base, or not whole")
        return None
    columns, places, missing = [first[1:]], [], []
    for place, point in enumerate(evidence.points):
        result = point.results.get(task)
        same = result is not None and result.version == base.version
        found = _columns(result, fields) if result and same else None
        if found is not None and np.array_equal(found[0], first[0]):
            columns.append(found[1:])
            places.append(place)
        else:
            missing.append(point)
    gaps += _missing(task, missing)
    table = ItemTable(*(np.stack(parts) for parts in zip(*columns, strict=True)))
    drawn = resample_items(table, DRAWS, _generator(task))
    sign = 1.0 if measure.higher_is_better else -1.0
    points = {place: sign * drawn[:, 1 + number] for number, place in enumerate(places)}
    return Scores(sign * drawn[:, 0], points, len(first[0]), sign)


def _columns(result: TaskResult, fields: Sequence[str]) -> list[Array] | None:
    """The items' indices, rising, and their values of some fields; None where one is no number."""
    # A whole column at once: a study may have millions of items.
    listed = [[item.get(field) for item in result.items] for field in ("index", *fields)]
    try:
        columns = [np.array(column, dtype=float) for column in listed]
    except (TypeError, ValueError):
        return None
    if not all(np.isfinite(column).all() for column in columns):
        return None
    order = np.argsort(columns[0])
    return [column[order] for column in columns]


def _missing(task: str, points: Sequence[Point]) -> list[str]:
    told = [describe(point) for point in points[:MOST_TOLD]]
    if len(points) > MOST_TOLD:
        told.append(f"{len(points) - MOST_TOLD} more")
    missing = f"{task} is missing, not whole, or of other items than the base's, for "
    return [missing + "; ".join(told)] if told else []


def describe(point: Point) -> str:
    """A point in words."""
    return (
        f"{point.arm} at {point.learning_rate:g}, seed {point.seed}, budget {point.budget:g} "
        f"(run {point.run['id']})"
    )


def _named(point: Point) -> dict[str, Any]:
    return {
        "run": point.run["id"],
        "arm": point.arm,
        "learning_rate": point.learning_rate,
        "seed": point.seed,
        "budget": point.budget,
    }


def _generator(text: str) -> np.random.Generator:
    """Draws that depend on what they are for, not on what else is drawn."""
    return np.random.default_rng(zlib.crc32(text.encode()))
