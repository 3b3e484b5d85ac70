"""Rank of the updates against layer and module, a panel an arm (Biderman et al. 2024, figure 6)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from laura.report import formats
from laura.report.arms import representatives, who_is_drawn
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study
from laura.results.schema import CheckpointSpectra, MatrixSpectra, Summary

if TYPE_CHECKING:
    import altair

TOOLTIPS = {
    "module": "module",
    "layer": "layer",
    "arm": "arm",
    "budget_text": "budget",
    "rank_text": "rank at 90 %",
    "noise_text": "of iid noise",
    "shape_text": "shape",
    "rate": "learning rate",
    "seeds": "seeds",
}
TABLE = "Size and rank of the updates"
HEIGHT = 230
# Of the attention, then of the MLP, as in the layer.
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def at_best_rates(study: Study) -> list[CheckpointSpectra]:
    """Checkpoints at each arm's best rate; every one where no rate was chosen."""
    best = {arm.name: arm.best for arm in study.summary.arms}
    return [
        one
        for one in study.analysis.spectra
        if not best.get(one.arm) or best[one.arm].get(one.seed) == one.learning_rate
    ]


def of_layers(one: CheckpointSpectra) -> list[tuple[MatrixSpectra, int, int]]:
    """Matrices within layers whose update has a rank: matrix, layer, rank at 90 %."""
    return [
        (matrix, matrix.layer, matrix.rank_kept)
        for matrix in one.matrices
        if matrix.layer is not None and matrix.rank_kept is not None
    ]


def modules(found: list[CheckpointSpectra]) -> list[str]:
    """Names of the modules, in the order of the layer."""
    names = {matrix.module for one in found for matrix, _, _ in of_layers(one)}
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: (places.get(name, len(ORDER)), name))


def of_representatives(study: Study) -> list[CheckpointSpectra]:
    """Checkpoints at the best rates of the arms that stand for all."""
    found = at_best_rates(study)
    arms = representatives(study.summary, {one.arm for one in found})
    return [one for one in found if one.arm in arms]


def arms_note(study: Study) -> str:
    """Which arms are drawn, where these are not all."""
    every = {one.arm for one in at_best_rates(study)}
    drawn = representatives(study.summary, every)
    return who_is_drawn(drawn, every, f"The table “{TABLE}” has")


def draw(study: Study) -> list[Panel]:
    """One panel for each of the arms that stand for all, on common axes."""
    found = of_representatives(study)
    arms = representatives(study.summary, {one.arm for one in found})
    rows = _rows(study.summary, found)
    return [_panel(study.summary, place, arm, rows) for place, arm in enumerate(arms)]


def _rows(summary: Summary, found: list[CheckpointSpectra]) -> list[style.Row]:
    cells: dict[
        tuple[str, float, str, int], list[tuple[CheckpointSpectra, MatrixSpectra, int]]
    ] = {}
    for one in found:
        for matrix, layer, rank in of_layers(one):
            key = (one.arm, one.budget, matrix.module, layer)
            cells.setdefault(key, []).append((one, matrix, rank))
    bands = {module: place for place, module in enumerate(modules(found))}
    last = max((layer for *_, layer in cells), default=0)
    rows = []
    for (arm, budget, module, layer), pairs in sorted(cells.items()):
        mean = math.fsum(rank for *_, rank in pairs) / len(pairs)
        one, matrix, _ = pairs[0]
        rows.append(
            {
                "arm": arm,
                "module": module,
                "layer": str(layer),
                "x": bands[module] + (layer + 0.5) / (last + 1),
                "budget": budget,
                "budget_text": formats.budget_of(summary, budget),
                "y": mean,
                "rank_text": f"{mean:g}",
                "noise": matrix.noise_kept,
                "noise_text": formats.count(matrix.noise_kept),
                "shape_text": f"{matrix.shape[0]} × {matrix.shape[1]}",
                "rate": formats.rates([own.learning_rate for own, *_ in pairs]),
                "seeds": formats.seeds(sorted({own.seed for own, *_ in pairs})),
            }
        )
    return rows


def _panel(summary: Summary, place: int, arm: str, every: list[style.Row]) -> Panel:
    import altair

    rows = [row for row in every if row["arm"] == arm]
    x, y = _module_axis(every), _rank_axis(every)
    color, drawn = budget_color(summary, every), style.chart(rows)
    noise = [row for row in rows if row["noise"] is not None]
    layers = [
        *_border_layers(every),
        *_noise_layers(noise),
        drawn.mark_line(strokeWidth=2, opacity=0.85).encode(
            x=x, y=y, color=color, detail="module:N", order=altair.Order("x:Q")
        ),
        drawn.mark_point(filled=True, opacity=1, size=30, shape="circle").encode(
            x=x, y=y, color=color, tooltip=style.tooltips(**TOOLTIPS)
        ),
    ]
    lines = ["Colour: budget." + (" Dashed: iid noise." if noise else "")]
    lines.append("In each module the layers from first to last.")
    return Panel(
        str(place),
        style.titled(layers, arm, *lines),
        f"Rank of the updates of {arm} against layer, module by module, coloured by budget, "
        "beside that of noise.",
        HEIGHT,
    )


def _module_axis(rows: list[style.Row]) -> altair.X:
    """Modules side by side, each one unit wide."""
    import altair

    names = {int(row["x"]): row["module"].removesuffix("_proj") for row in rows}
    centers = [place + 0.5 for place in sorted(names)]
    told = json.dumps([names[place] for place in sorted(names)])
    return altair.X(
        "x:Q",
        title="module (layers within)",
        scale=altair.Scale(domain=[0, len(names)], nice=False),
        axis=altair.Axis(
            values=centers, labelExpr=f"{told}[floor(datum.value)]", grid=False, ticks=False
        ),
    )


def _rank_axis(rows: list[style.Row]) -> altair.Y:
    """The same for every arm; on a linear axis the ranks of LoRA would all lie on the ground."""
    import altair

    most = max(max(row["y"], row["noise"] or 0) for row in rows)
    ticks = [2**power for power in range(20) if 2**power <= most][-9:]
    return altair.Y(
        "y:Q",
        title=["rank that keeps 90 %", "of the sum of squares"],
        scale=altair.Scale(type="symlog", constant=8, domain=[0, 1.1 * most + 1], nice=False),
        axis=altair.Axis(values=[0, *ticks], labelOverlap=True),
    )


def _border_layers(rows: list[style.Row]) -> list[altair.Chart]:
    borders = [{"x": place} for place in range(1, 1 + max(int(row["x"]) for row in rows))]
    if not borders:
        return []
    line = style.chart(borders).mark_rule(color=style.GREY, strokeWidth=1, opacity=0.3)
    return [line.encode(x="x:Q")]


def budget_color(summary: Summary, rows: list[style.Row]) -> altair.Color:
    """Pale to dark with the budget, the same in every panel."""
    import altair

    budgets = sorted({row["budget"] for row in rows})
    # Neither end is so pale or dark that one ground would hide it.
    ramp = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#3f57a6", "#6a51a3", "#8a3f9c", "#b0308f")
    step = (len(ramp) - 1) / max(1, len(budgets) - 1)
    colors = [ramp[round(place * step)] if len(budgets) > 1 else ramp[3]
              for place in range(len(budgets))]  # fmt: skip
    return altair.Color(
        "budget_text:N",
        scale=altair.Scale(
            domain=[formats.budget_of(summary, budget) for budget in budgets], range=colors
        ),
        legend=altair.Legend(title=None, orient="bottom", columns=4),
    )


def _noise_layers(rows: list[style.Row]) -> list[altair.Chart]:
    if not rows:
        return []
    lines = style.chart(rows).mark_line(color=style.GREY, strokeDash=[5, 4], strokeWidth=1.5)
    return [lines.encode(x="x:Q", y="noise:Q", detail="module:N")]


CHART = Chart(
    name="spectra",
    title="Rank of the updates, layer by layer",
    explanation=(
        "How many directions keep 90 % of the update's sum of squares, for every matrix, at each "
        "arm's best rate (mean over seeds; the axis is logarithmic above about 8). The dashed "
        "line is the same number of iid noise of that shape: an update near it has no preferred "
        "directions. LoRA cannot exceed its rank."
    ),
    draw=draw,
    note=arms_note,
)
