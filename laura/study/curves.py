"""A study's curves of learning and forgetting under the bootstrap, from its items. No torch.

Items and seeds are drawn anew: the items of a task together for all models, so that what
models share cancels; the seeds of an arm at one rate together for all its budgets, so that
a lucky run stays lucky.

Shapes: B draws, the first as measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laura.analysis import tradeoff
from laura.analysis.tradeoff import (
    DRAWS,
    Array,
    CurvePoint,
    ItemTable,
    resample_items,
    resample_seeds,
)
from laura.results.schema import MEAN, FrontPoint, NeededRow, Tradeoff
from laura.results.task_result import RATIO_FIELDS, TaskResult
from laura.study.evidence import Evidence, Point

MOST_TOLD = 3  # points that lack one task, in words


@dataclass(frozen=True)
class DrawnScores:
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


@dataclass(frozen=True)
class Curves:
    """What a study's curves say.

    Attributes:
        tradeoff: The front and the areas; None where something was not measured.
        efficiency: Budgets needed to reach levels of the learning tasks.
        forgetting: What forgetting was judged by: a task, or `mean`.
        forgotten: Place in `evidence.points` to what it forgot.
    """

    tradeoff: Tradeoff | None
    efficiency: list[NeededRow]
    forgetting: str
    forgotten: dict[int, float]


def build_curves(evidence: Evidence, gaps: list[str]) -> Curves:
    """The parts `tradeoff` and `efficiency` of analysis.json, and what was forgotten.

    Args:
        evidence: The study.
        gaps: What is missing is added here, in words.
    """
    learnt = {task: _scores(task, evidence, gaps) for task in evidence.learning}
    forgetting = MEAN if evidence.accuracies else evidence.forgetting[0]
    kept = _kept(forgetting, evidence, gaps)
    forgotten = {} if kept is None else {i: kept.base - own for i, own in kept.points.items()}
    leading = learnt[evidence.learning[0]]
    found = None
    if leading is not None and kept is not None:
        found = _tradeoff(evidence, leading, forgetting, forgotten, gaps)
    needed = [
        row
        for task, scores in learnt.items()
        if scores is not None
        for row in _efficiency(task, scores, evidence, gaps)
    ]
    told = {place: float(own[0]) for place, own in forgotten.items()}
    return Curves(found, needed, forgetting, told)


def _tradeoff(
    evidence: Evidence,
    learnt: DrawnScores,
    forgetting: str,
    forgotten: Mapping[int, Array],
    gaps: list[str],
) -> Tradeoff:
    arms = {
        arm: _cells(arm, range(len(evidence.points)), evidence, learnt.points, forgotten)
        for arm in evidence.recipe.arms
    }
    areas = tradeoff.areas(arms, learnt.base)
    if not areas and any(arms.values()):
        gaps.append("no arm both learnt and forgot, so there is no area of the trade-off")
    for arm, cells in arms.items():
        if len(cells) == 1:
            gaps.append(f"{arm} has one point only, so it has no curve of learning and forgetting")
    named = [(arm, cell) for arm, cells in arms.items() for cell in cells]
    base = float(learnt.base[0])
    pairs = [(float(cell.learnt[0]) - base, float(cell.forgotten[0])) for _, cell in named]
    front = [
        FrontPoint(
            arm=arm,
            learning_rate=cell.rates[0],
            budget=cell.budget,
            learning=pairs[place][0],
            forgetting=pairs[place][1],
            seeds=list(cell.seeds),
            runs=list(cell.runs),
        )
        for place in tradeoff.pareto_front(pairs)
        for arm, cell in [named[place]]
    ]
    return Tradeoff(learning=evidence.learning[0], forgetting=forgetting, front=front, area=areas)


def _efficiency(
    task: str, learnt: DrawnScores, evidence: Evidence, gaps: list[str]
) -> list[NeededRow]:
    recipe = evidence.recipe
    chosen = [at for at, point in enumerate(evidence.points) if evidence.is_chosen(point)]
    curves = {}
    for arm in evidence.recipe.arms:
        if own := _cells(arm, chosen, evidence, learnt.points, learnt.points, together=True):
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
    rows = []
    for share in tradeoff.LEVELS:
        level = base + share * (most - base)
        for arm, own in curves.items():
            scores = np.stack([cell.learnt for cell in own], 1)
            found = tradeoff.needed([cell.budget for cell in own], scores, level)
            rows.append(
                NeededRow(
                    arm=arm,
                    task=task,
                    level=learnt.sign * level,
                    share=share,
                    unit="tokens" if recipe.budget.tokens else "epochs",
                    needed=found.value,
                    at_most=found.at_most,
                    interval=found.interval,
                    reached=found.reached,
                    rates=sorted({rate for cell in own for rate in cell.rates}),
                    seeds=min(len(cell.seeds) for cell in own),
                    n=learnt.items,
                )
            )
    return rows


def _cells(
    arm: str,
    places: Sequence[int],
    evidence: Evidence,
    learnt: Mapping[int, Array],
    forgotten: Mapping[int, Array],
    together: bool = False,
) -> list[CurvePoint]:
    """An arm's points at these places by rate and budget, means over resampled seeds.

    `together` takes the seeds of a budget as one cell, whatever their rates.
    """
    groups: dict[tuple[float, float], dict[int, int]] = {}
    for place in places:
        point = evidence.points[place]
        if point.arm == arm and place in learnt and place in forgotten:
            rate = 0.0 if together else point.learning_rate
            groups.setdefault((rate, point.budget), {})[point.seed] = place
    cells = []
    for (_, budget), by_seed in sorted(groups.items()):
        seeds = sorted(by_seed)
        own = [evidence.points[by_seed[seed]] for seed in seeds]
        rates = tuple(sorted({point.learning_rate for point in own}))
        # Drawn by arm, rates and seeds alone: the same for every budget of these runs.
        generator = _generator(f"{arm}/{'+'.join(map(repr, rates))}/{seeds}")
        weights = resample_seeds(len(seeds), DRAWS, generator)
        sides = [
            np.stack([table[by_seed[seed]] for seed in seeds], 1) for table in (learnt, forgotten)
        ]
        means = [(side * weights).sum(axis=1) for side in sides]
        runs = tuple(str(point.run["id"]) for point in own)
        cells.append(CurvePoint(rates, budget, tuple(seeds), runs, means[0], means[1]))
    return cells


def _kept(name: str, evidence: Evidence, gaps: list[str]) -> DrawnScores | None:
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
    return DrawnScores(base, points, sum(part.items for part in whole), 1.0)


def _scores(task: str, evidence: Evidence, gaps: list[str]) -> DrawnScores | None:
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
    return DrawnScores(sign * drawn[:, 0], points, len(first[0]), sign)


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


def _generator(text: str) -> np.random.Generator:
    """Draws that depend on what they are for, not on what else is drawn."""
    return np.random.default_rng(zlib.crc32(text.encode()))
