"""What was analysed: updates of the weights and intruders by layer, distinct outputs, pass@k.

Biderman et al. 2024, figures 5, 6 and S9; Shuttleworth et al. 2025.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import TypeVar

import altair

from laura.report import formats
from laura.report.arms import representatives, who_is_drawn
from laura.report.charts import style
from laura.report.charts.style import GREY, ChartPanel, Row, chart_of
from laura.report.samples.find import BASE
from laura.report.study import Study
from laura.results.schema import (
    CheckpointSpectra,
    DiversityRow,
    MatrixSpectra,
    PassAtKRow,
    SampledRow,
    Summary,
)
from laura.results.statistics import Estimate, over_seeds

TABLE = "Size and rank of the updates"
HEIGHT = 230
# Of the attention, then of the MLP, as in the layer.
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Pale to dark with the budget; neither end is so pale or dark that one ground would hide it.
RAMP = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#3f57a6", "#6a51a3", "#8a3f9c", "#b0308f")


def at_best_rates(study: Study) -> list[CheckpointSpectra]:
    """Checkpoints at each arm's best rate; every one where no rate was chosen."""
    best = {arm.name: arm.best for arm in study.summary.arms}
    return [
        one
        for one in study.analysis.spectra
        if not best.get(one.arm) or best[one.arm].get(one.seed) == one.learning_rate
    ]


def of_representatives(study: Study) -> dict[str, list[CheckpointSpectra]]:
    """The arms that stand for all, with their checkpoints at the best rates."""
    found = at_best_rates(study)
    arms = representatives(study.summary, {one.arm for one in found})
    return {arm: [one for one in found if one.arm == arm] for arm in arms}


def arms_note(study: Study) -> str:
    """Which arms are drawn, where these are not all."""
    every = {one.arm for one in at_best_rates(study)}
    drawn = representatives(study.summary, every)
    return who_is_drawn(drawn, every, f"The table “{TABLE}” has")


@chart_of("Rank of the updates, layer by layer", arms_note)
def spectra(study: Study) -> list[ChartPanel]:
    """How many directions keep 90 % of the update's sum of squares, for every matrix, at each arm's
    best rate (mean over seeds; the axis is logarithmic above about 8). The dashed line is the
    same number of iid noise of that shape: an update near it has no preferred directions. LoRA
    cannot exceed its rank.
    """
    # Rank of the updates against layer, module by module: a panel an arm, on common axes.
    found = of_representatives(study)
    rows = _rows(study.summary, [one for own in found.values() for one in own])
    return [_panel(study.summary, place, arm, rows) for place, arm in enumerate(found)]


def _rows(summary: Summary, found: list[CheckpointSpectra]) -> list[Row]:
    """One row an arm, budget, module and layer: means over the seeds."""
    cells: dict[tuple[str, float, str, int], list[tuple[MatrixSpectra, int]]] = {}
    for one in found:
        for matrix in one.matrices:
            if matrix.layer is not None and matrix.rank_kept is not None:
                key = (one.arm, one.budget, matrix.module, matrix.layer)
                cells.setdefault(key, []).append((matrix, matrix.rank_kept))
    known = {name: place for place, name in enumerate(ORDER)}
    names = sorted({key[2] for key in cells}, key=lambda name: (known.get(name, len(ORDER)), name))
    last = max((layer for *_, layer in cells), default=0)
    rows = []
    for (arm, budget, module, layer), own in sorted(cells.items(), key=lambda cell: cell[0]):
        rows.append(
            {
                "arm": arm, "module": module, "layer": str(layer),
                "x": names.index(module) + (layer + 0.5) / (last + 1),
                "budget": budget, "budget_text": formats.budget_of(summary, budget),
                "y": fmean(rank for _, rank in own), "noise": own[0][0].noise_kept,
            }
        )  # fmt: skip
    return rows


def _panel(summary: Summary, place: int, arm: str, every: list[Row]) -> ChartPanel:
    rows = [row for row in every if row["arm"] == arm]
    noise = [row for row in rows if row["noise"] is not None]
    x, y, drawn = _module_axis(every), _rank_axis(every), style.chart(rows)
    color = _budget_color(summary, every)
    line = drawn.mark_line(strokeWidth=2, opacity=0.85)
    point = drawn.mark_point(filled=True, opacity=1, size=30, shape="circle")
    layers = []
    if borders := [{"x": at} for at in range(1, 1 + max(int(row["x"]) for row in every))]:
        rule = style.chart(borders).mark_rule(color=GREY, strokeWidth=1, opacity=0.3)
        layers.append(rule.encode(x="x:Q"))
    if noise:
        dashed = style.chart(noise).mark_line(color=GREY, strokeDash=[5, 4], strokeWidth=1.5)
        layers.append(dashed.encode(x="x:Q", y="noise:Q", detail="module:N"))
    layers += [
        line.encode(x=x, y=y, color=color, detail="module:N", order=altair.Order("x:Q")),
        point.encode(x=x, y=y, color=color),
    ]
    told = "Colour: budget." + (" Dashed: iid noise." if noise else "")
    return ChartPanel(
        str(place),
        style.titled(layers, arm, told, "In each module the layers from first to last."),
        f"Rank of the updates of {arm} against layer, module by module, coloured by budget, "
        "beside that of noise.",
        HEIGHT,
    )


def _module_axis(rows: list[Row]) -> altair.X:
    """Modules side by side, each one unit wide."""
    names = dict(sorted((int(row["x"]), row["module"].removesuffix("_proj")) for row in rows))
    label = f"{json.dumps(list(names.values()))}[floor(datum.value)]"
    centers = [place + 0.5 for place in names]
    return altair.X(
        "x:Q",
        title="module (layers within)",
        scale=altair.Scale(domain=[0, len(names)], nice=False),
        axis=altair.Axis(values=centers, labelExpr=label, grid=False, ticks=False),
    )


def _rank_axis(rows: list[Row]) -> altair.Y:
    """The same for every arm; on a linear axis the ranks of LoRA would all lie on the ground."""
    most = max(max(row["y"], row["noise"] or 0) for row in rows)
    ticks = [2**power for power in range(20) if 2**power <= most][-9:]
    return altair.Y(
        "y:Q",
        title=["rank that keeps 90 %", "of the sum of squares"],
        scale=altair.Scale(type="symlog", constant=8, domain=[0, 1.1 * most + 1], nice=False),
        axis=altair.Axis(values=[0, *ticks], labelOverlap=True),
    )


def _budget_color(summary: Summary, rows: list[Row]) -> altair.Color:
    """The same in every panel."""
    budgets = sorted({row["budget"] for row in rows})
    step = (len(RAMP) - 1) / max(1, len(budgets) - 1)
    colors = [RAMP[round(place * step)] for place in range(len(budgets))]
    names = [formats.budget_of(summary, budget) for budget in budgets]
    scale = altair.Scale(domain=names, range=colors if len(budgets) > 1 else [RAMP[3]])
    legend = altair.Legend(title=None, orient="bottom", columns=4)
    return altair.Color("budget_text:N", scale=scale, legend=legend)


@chart_of("Intruder dimensions", arms_note)
def intruders(study: Study) -> list[ChartPanel]:
    """Leading directions of the tuned matrix that are like no direction of the base. Many of them
    go with forgetting, not with learning (Shuttleworth et al. 2025).
    """
    # One line an arm at its largest budget against layer; none where they were not counted.
    counts: dict[tuple[str, int], list[float]] = {}
    for arm, own in of_representatives(study).items():
        largest = max(one.budget for one in own)
        for matrix in (m for one in own if one.budget == largest for m in one.matrices):
            if matrix.intruders is not None and matrix.layer is not None:
                counts.setdefault((arm, matrix.layer), []).append(matrix.intruders)
    rows: list[Row] = [
        {"arm": arm, "x": layer, "y": fmean(own)} for (arm, layer), own in sorted(counts.items())
    ]
    if not rows:
        return []
    layers = sorted({row["x"] for row in rows})
    axis = altair.Axis(values=layers[:: -(-len(layers) // 9)], format="d", grid=False)
    x = altair.X("x:Q", title="layer", axis=axis)
    y = altair.Y("y:Q", title="intruder dimensions a matrix, mean")
    apart = style.arms_apart(study.summary, {row["arm"] for row in rows})
    drawing = style.titled(
        style.lines(rows, x, y, *apart),
        "Intruder dimensions",
        "Mean over the layer's matrices and seeds.",
    )
    words = "Intruder dimensions a matrix against layer, one line an arm."
    return [ChartPanel("count", drawing, words)]


# ----- many samples of a prompt (Biderman et al. 2024, figures 5, S9) -----


S = TypeVar("S", bound=SampledRow)
Sampled = dict[str, dict[str, list[S]]]
"""Extra of the recipe to model to its rows, one a seed."""

KINDS = {"distinct": "all", "distinct_passed": "of those that pass",
         "distinct_failed": "of those that fail"}  # fmt: skip


def by_model(found: Sequence[S]) -> Sampled[S]:
    """By extra, in the order of the recipe: the base and every arm at its largest budget."""
    last: dict[tuple[str, str | None], float] = {}
    for one in found:
        key = (one.extra, one.arm)
        last[key] = max(last.get(key, 0.0), one.budget or 0.0)
    models: Sampled[S] = {}
    for one in found:
        own = models.setdefault(one.extra, {})
        if (one.budget or 0.0) == last[one.extra, one.arm]:
            own.setdefault(one.arm or BASE, []).append(one)
    return models


def count(seeds: list[DiversityRow], name: str) -> Estimate | None:
    """A count over the seeds that have it."""
    own = [found for one in seeds if (found := getattr(one, name)) is not None]
    return over_seeds(own) if own else None


def at_k(seeds: list[PassAtKRow]) -> dict[int, Estimate]:
    """pass@k over the seeds, by k."""
    every: dict[int, list[Estimate]] = {}
    for one in seeds:
        for k, found in one.at_k.items():
            every.setdefault(k, []).append(found)
    return {k: over_seeds(found) for k, found in sorted(every.items())}


def _drawn(first: SampledRow) -> str:
    heat = "" if first.temperature is None else f", temperature {first.temperature:g}"
    return f"{first.samples} samples a prompt{heat}."


@chart_of("Diversity of the outputs")
def diversity(study: Study) -> list[ChartPanel]:
    """How many different texts a model writes to the same prompt, of all its samples, of those that
    pass and of those that fail. Finetuning narrows it; LoRA is said to keep more of the base's
    (figure 5 of Biderman et al. 2024). Counts of passing samples also grow with the share that
    passes.
    """
    # One panel for each extra.
    panels = []
    for extra, models in by_model(study.analysis.diversity).items():
        rows: list[Row] = [
            {"arm": model, "kind": kind, **style.spread("x", found)}
            for model, seeds in models.items()
            for name, kind in KINDS.items()
            if (found := count(seeds, name)) is not None
        ]  # fmt: skip
        if not rows:
            continue
        first = next(iter(models.values()))[0]
        kinds = list(KINDS.values())
        legend = altair.Legend(title=None, orient="bottom", columns=1)
        named = {kind: place for place, kind in enumerate(kinds)}
        apart = style.told_apart("kind", named, key=legend)
        x = altair.X("x:Q", title=f"distinct outputs among {first.samples} samples of a prompt")
        y = style.rows_axis("arm", models, 0.3)
        offset = altair.YOffset("kind:N", scale=altair.Scale(domain=kinds))
        layers = style.dots(rows, x, y, offset, *apart)
        title = f"{study.summary.task(first.task).short_title}: distinct outputs"
        drawing = style.titled(layers, title, _drawn(first), style.BARS)
        words = f"Distinct outputs a prompt of {', '.join(models)}, all, passing and failing."
        panels.append(ChartPanel(extra, drawing, words, max(140, len(models) * 66)))
    return panels


def _passes_note(study: Study) -> str:
    sampled = {one.arm for one in study.analysis.pass_at_k if one.arm}
    drawn = [name for name in style.coloured(study.summary) if name in sampled]
    return who_is_drawn(drawn, sampled, "The table below has")


@chart_of("pass@k", _passes_note)
def pass_at_k(study: Study) -> list[ChartPanel]:
    """The chance that at least one of k samples passes (the unbiased estimate of Chen et al. 2021).
    Where the lines of two models cross, the one that is better at k = 1 has lost answers that
    the other still finds among many.
    """
    # One panel for each extra that has more than one k: the base and one line an arm.
    summary, panels = study.summary, []
    hues = {name: style.arm_hues(summary)[name] for name in style.coloured(summary)}
    found = [
        one
        for one in study.analysis.pass_at_k
        if len(one.at_k) > 1 and (one.arm is None or one.arm in hues)
    ]
    for extra, models in by_model(found).items():
        rows = [
            {"series": model, "x": k, **style.spread("y", found, 100.0)}
            for model, seeds in models.items()
            for k, found in at_k(seeds).items()
        ]  # fmt: skip
        first = next(iter(models.values()))[0]
        colors = [style.GREY if model == BASE else hues[model] for model in models]
        color, shape = style.told_apart("series", {m: at for at, m in enumerate(models)}, colors)
        x = style.listed_axis("k (log scale)", [row["x"] for row in rows])
        y = altair.Y("y:Q", title="pass@k (%)", scale=altair.Scale(zero=False, padding=10))
        layers = style.lines(rows, x, y, color, shape)
        title = f"{summary.task(first.task).short_title}: pass@k"
        drawing = style.titled(layers, title, f"{_drawn(first)} {style.BARS}")
        words = f"pass@k against k on a logarithmic axis, of {', '.join(models)}."
        panels.append(ChartPanel(extra, drawing, words))
    return panels
