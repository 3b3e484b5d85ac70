"""`analysis.json`: what a study's scores, samples and weights say together. No torch.

Like `summary.json` it is rebuilt from the folder at any time and depends on neither time
nor machine. What is missing is named under "gaps"; nothing stops because of it.

The spectra and subspaces of its weights lie in

base/analysis/spectra.json             of the base, once
runs/ID/analysis/STEP/spectra.json     of one checkpoint
runs/ID/analysis/STEP/movement.json    how far its hidden states moved
analysis/subspaces.json                of the best lora and the best full arm

Curves of learning and forgetting are told under the bootstrap: items and seeds are drawn anew,
the items of a task together for all models, so that what models share cancels; the seeds of an
arm at one rate together for all its budgets, so that a lucky run stays lucky. Shapes: B draws,
the first as measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from laura.analysis import tradeoff
from laura.analysis.spikes import loss_spikes
from laura.analysis.tradeoff import (
    DRAWS,
    Array,
    CurvePoint,
    ItemTable,
    explained,
    resample_items,
    resample_seeds,
)
from laura.analysis.transitions import TurnedItems, transitions
from laura.recipe.tasks import DRIFT
from laura.results.errors import StoreError
from laura.results.schema import (
    ANALYSIS_FILE,
    MEAN,
    Analysis,
    CheckpointSpectra,
    DriftFit,
    DriftRow,
    Estimated,
    F,
    FrontPoint,
    NeededRow,
    RunSpikes,
    SubspaceOverlap,
    TextMovement,
    Tradeoff,
    TransitionRow,
    faults_of,
    write_file,
)
from laura.results.statistics import Contrast
from laura.results.store import StudyStore, read_json
from laura.results.task_result import RATIO_FIELDS, TaskResult
from laura.results.units import budget_text
from laura.study.choosing import choice_gaps
from laura.study.evidence import Evidence, Point, score_of
from laura.study.extras import build_sampled
from laura.study.stages import build_stages


def build_findings(evidence: Evidence, store: StudyStore) -> Analysis:
    """What the scores, samples and weights of a study say together."""
    gaps = _run_gaps(evidence)
    curves = build_curves(evidence, gaps)
    sampled = build_sampled(evidence, store, gaps)
    return Analysis(
        tradeoff=curves.tradeoff,
        efficiency=curves.efficiency,
        **sampled,
        drift=_drift(evidence),
        drift_fit=_drift_fit(evidence, curves.forgetting, curves.forgotten),
        transitions=list(_transitions(evidence)),
        stages=build_stages(evidence, store.folder, gaps),
        spikes=read_spikes(evidence),
        spectra=read_spectra(store, evidence, gaps),
        subspaces=read_subspaces(store, evidence, gaps),
        movement=read_movement(store, evidence, gaps),
        # Whoever moves the folder must find the same words.
        gaps=[gap.replace(f"{store.folder}/", "") for gap in dict.fromkeys(gaps)],
    )


def write_findings(evidence: Evidence, store: StudyStore) -> Analysis:
    """Build `analysis.json` and write it."""
    findings = build_findings(evidence, store)
    write_file(store.folder / ANALYSIS_FILE, findings)
    return findings


def _run_gaps(evidence: Evidence) -> list[str]:
    measured = {(point.run_id, point.step) for point in evidence.points}
    ended, missing = [], []
    for run in evidence.runs:
        told = f"{run.arm} at {run.learning_rate:g}, seed {run.seed} (run {run.run_id})"
        if run.state != "done":
            ended.append(f"{told} is {run.state}, not done")
            continue
        missing += [
            f"{told} was not measured at budget {budget_text(mark['budget'])}"
            for mark in run.record["points"]
            if (run.run_id, mark["step"]) not in measured
        ]
    return [*ended, *missing, *choice_gaps(evidence)]


def _drift(evidence: Evidence) -> list[DriftRow]:
    return [
        DriftRow(**point.whose, measure=name, value=score_of(point.results[name]))
        for point in evidence.points
        for name in DRIFT
        if name in point.results
    ]


def _drift_fit(
    evidence: Evidence, forgetting: str, forgotten: Mapping[int, float]
) -> list[DriftFit]:
    """How well each divergence tells what was forgotten, over all points of all arms."""
    rows = []
    for name in DRIFT:
        pairs = [
            (evidence.points[place].results[name].metrics["nats_per_token"].value, value)
            for place, value in forgotten.items()
            if name in evidence.points[place].results
        ]
        if not pairs or name == forgetting:
            continue
        share = explained(*zip(*pairs, strict=True))
        if share is not None:
            row = DriftFit(measure=name, forgetting=forgetting, r_squared=share, n=len(pairs))
            rows.append(row)
    return rows


# ----- items that turned -----


def _transitions(evidence: Evidence) -> Iterator[TransitionRow]:
    """For each arm at its best rate and each budget: the mean of the forgetting tasks, then each.

    A point that lacks a task, or has it of other items, is told among the gaps of the curves.
    """
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in evidence.chosen_points(everywhere=True):
        groups.setdefault((point.arm, point.budget), []).append(point)
    for (arm, budget), points in groups.items():
        turned = {task: _turned(task, evidence, points) for task in evidence.accuracies}
        whole = {task: found for task, found in turned.items() if found is not None}
        named = {task: [found] for task, found in whole.items()}
        if len(whole) == len(turned) > 1:
            named = {MEAN: list(whole.values()), **named}
        for task, found in named.items():
            told = transitions(found)
            yield TransitionRow(
                arm=arm,
                budget=budget,
                task=task,
                forgotten=_share_of(told.forgotten),
                gained=_share_of(told.gained),
                luck=told.luck,
            )


def _share_of(found: Contrast) -> Estimated:
    """A share with its interval, which ends where shares do."""
    told = Estimated.of(found, "share")
    low, high = told.interval
    return told.model_copy(update={"interval": (max(0.0, low), min(1.0, high))})


def _turned(task: str, evidence: Evidence, points: Sequence[Point]) -> TurnedItems | None:
    """A task's items before and after, seed by seed; None where they are not the same ones."""
    metric, base = evidence.measures[task].metric, evidence.base.get(task)
    before = None if base is None else _columns(base, [metric])
    if base is None or before is None:
        return None
    after = []
    for point in points:
        found = _same_items(point.results.get(task), base, before[0], [metric])
        if found is None:
            return None
        after.append(found[1])
    choices = [len(item.get("loglikelihoods", ())) for item in base.items]
    return TurnedItems(before[1], np.stack(after), np.array(choices) if all(choices) else None)


# ----- training -----


def read_spikes(evidence: Evidence) -> list[RunSpikes]:
    """The part `spikes` of analysis.json: one entry for every run that took steps.

    Diverged runs are among them.
    """
    rows = []
    for run in evidence.runs:
        curves = _curves(run.metrics())
        if not curves:
            continue
        found = [
            (steps[spike.start], spike.rise)
            for fresh, steps, losses in curves
            for spike in loss_spikes(losses)
            if spike.start >= fresh
        ]
        rows.append(
            RunSpikes(
                **run.whose,
                count=len(found),
                worst=max((rise for _, rise in found), default=None),
                steps=[step for step, _ in found],
                n=sum(len(steps) - fresh for fresh, steps, _ in curves),
            )
        )
    return rows


def _curves(rows: list[dict[str, Any]]) -> list[tuple[int, list[int], list[float]]]:
    """Steps and losses of the trunk, and of every branch after the trunk it left.

    Each with the number of steps at its beginning that another curve has already told.
    """
    trunk = [row for row in rows if not row["leg"].startswith("branch")]
    legs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["leg"].startswith("branch"):
            legs.setdefault(row["leg"], []).append(row)
    paths = [(0, trunk)] if trunk else []
    for own in legs.values():
        shared = [row for row in trunk if row["step"] < own[0]["step"]]
        paths.append((len(shared), shared + own))
    return [
        (fresh, [row["step"] for row in path], [row["loss"] for row in path])
        for fresh, path in paths
    ]


# ----- weights -----

FORMAT = 1


def base_spectra_file(store: StudyStore) -> Path:
    """Where the base's own spectra lie."""
    return store.folder / "base" / "analysis" / "spectra.json"


def spectra_file(store: StudyStore, point: Point) -> Path:
    """Where the spectra of a run at a budget point lie."""
    return store.run(point.run_id).analysis(point.step, "spectra")


def movement_file(store: StudyStore, point: Point) -> Path:
    """Where it lies how far a run at a budget point moved."""
    return store.run(point.run_id).analysis(point.step, "movement")


def subspaces_file(store: StudyStore) -> Path:
    """Where the comparison of directions lies."""
    return store.folder / "analysis" / "subspaces.json"


def analysed_points(evidence: Evidence) -> list[Point]:
    """The points whose weights the recipe wants analysed: at each seed's best rate."""
    wanted = evidence.recipe.analysis.spectra
    return [] if wanted == "none" else evidence.chosen_points(wanted == "all")


def read_spectra(store: StudyStore, evidence: Evidence, gaps: list[str]) -> list[CheckpointSpectra]:
    """The `spectra` part of a study's analysis: one entry a checkpoint, in order.

    Args:
        store: The study.
        evidence: What it holds.
        gaps: Gets a sentence for each checkpoint that could not be analysed, and for
            each file that is damaged.
    """
    entries = _entries(store, evidence, spectra_file, "spectra", gaps)
    return [one for file, e in entries for one in _checked(CheckpointSpectra, [e], file, gaps)]


def read_movement(store: StudyStore, evidence: Evidence, gaps: list[str]) -> list[TextMovement]:
    """The `movement` part of a study's analysis, one entry a text; `gaps` as in `read_spectra`."""
    if not evidence.recipe.analysis.movement:
        return []
    entries = _entries(store, evidence, movement_file, "movement", gaps)
    return [
        one for file, e in entries for one in _checked(TextMovement, e.get("texts"), file, gaps)
    ]


def _entries(
    store: StudyStore,
    evidence: Evidence,
    place: Callable[[StudyStore, Point], Path],
    what: str,
    gaps: list[str],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of the analysed points, without those that hold a fault."""
    for point in analysed_points(evidence):
        file = place(store, point)
        entry = _stored(file, gaps)
        if entry is not None and "fault" in entry:
            told = f"{point.arm}, seed {point.seed}, step {point.step}"
            gaps.append(f"no {what} of {told}: {entry['fault']}")
        elif entry is not None:
            yield file, entry


def read_subspaces(store: StudyStore, evidence: Evidence, gaps: list[str]) -> list[SubspaceOverlap]:
    """The `subspaces` part of a study's analysis; `gaps` as in `read_spectra`."""
    section = evidence.recipe.analysis
    if section.spectra == "none" or section.subspace_k is None:
        return []
    file = subspaces_file(store)
    rows = (_stored(file, gaps) or {}).get("matrices", [])
    return _checked(SubspaceOverlap, rows, file, gaps)


def _checked(kind: type[F], rows: Any, file: Path, gaps: list[str]) -> list[F]:
    """Rows of a file of the weights' analysis; `gaps` gets the faults of a damaged one."""
    try:
        every = rows if isinstance(rows, list) else [rows]
        return [kind.model_validate(_without_format(row)) for row in every]
    except ValidationError as error:
        gaps.append(f"{file} is damaged: {faults_of(error)}; delete it and give the command again")
        return []


def _without_format(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {key: value for key, value in row.items() if key != "format"}


def _stored(file: Path, gaps: list[str]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        value = read_json(file)
    except StoreError as error:
        gaps.append(str(error))
        return None
    return value if isinstance(value, dict) else None


# ----- curves of learning and forgetting -----

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
            f"{arm} at {', '.join(budget_text(cell.budget) for cell in own)}"
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
        runs = tuple(str(point.run_id) for point in own)
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
        found = _same_items(point.results.get(task), base, first[0], fields)
        if found is not None:
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


def _same_items(
    result: TaskResult | None, base: TaskResult, indices: Array, fields: Sequence[str]
) -> list[Array] | None:
    """As `_columns`; None too where they are not of the base's version and items."""
    if result is None or result.version != base.version:
        return None
    found = _columns(result, fields)
    return found if found is not None and np.array_equal(found[0], indices) else None


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
    told = [str(point) for point in points[:MOST_TOLD]]
    if len(points) > MOST_TOLD:
        told.append(f"{len(points) - MOST_TOLD} more")
    missing = f"{task} is missing, not whole, or of other items than the base's, for "
    return [missing + "; ".join(told)] if told else []


def _generator(text: str) -> np.random.Generator:
    """Draws that depend on what they are for, not on what else is drawn."""
    return np.random.default_rng(zlib.crc32(text.encode()))
