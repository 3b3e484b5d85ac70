"""Rank of the updates against layer, one panel a module (Biderman et al. 2024, figure 6)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from laura.report import formats
from laura.report.analysis import Matrix, Spectra
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.reading import Summary
from laura.report.study import Study

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
# Of the attention, then of the MLP, as in the layer.
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def at_best_rates(study: Study) -> list[Spectra]:
    """Checkpoints at each arm's best rate; every one where no rate was chosen."""
    best = {arm.name: arm.best_learning_rate for arm in study.summary.arms}
    return [
        one
        for one in study.analysis.spectra
        if best.get(one.arm) is None or one.learning_rate == best[one.arm]
    ]


def modules(found: list[Spectra]) -> list[str]:
    """Names of the modules, in the order of the layer."""
    names = {matrix.module for one in found for matrix in one.matrices}
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: (places.get(name, len(ORDER)), name))


def draw(study: Study) -> list[Panel]:
    """One panel for each module."""
    found = at_best_rates(study)
    return [_panel(study.summary, found, module) for module in modules(found)]


def _rows(summary: Summary, found: list[Spectra], module: str) -> list[style.Row]:
    cells: dict[tuple[str, float, int], list[tuple[Spectra, Matrix]]] = {}
    for one in found:
        for matrix in one.matrices:
            if matrix.module == module:
                cells.setdefault((one.arm, one.budget, matrix.layer), []).append((one, matrix))
    rows = []
    for (arm, budget, layer), pairs in sorted(cells.items()):
        rank = math.fsum(matrix.rank for _, matrix in pairs) / len(pairs)
        one, matrix = pairs[0]
        rows.append(
            {
                "arm": arm,
                "module": module,
                "layer": layer,
                "budget": budget,
                "budget_text": formats.budget_of(summary, budget),
                "y": rank,
                "rank_text": f"{rank:g}",
                "noise": matrix.noise_rank,
                "noise_text": formats.count(matrix.noise_rank),
                "shape_text": f"{matrix.shape[0]} × {matrix.shape[1]}",
                "rate": formats.rate(one.learning_rate),
                "seeds": formats.seeds(sorted({own.seed for own, _ in pairs})),
            }
        )
    return rows


def _panel(summary: Summary, found: list[Spectra], module: str) -> Panel:
    import altair

    rows = _rows(summary, found, module)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    x = altair.X("layer:Q", title="layer", axis=layer_axis(rows))
    # On a linear axis the ranks of LoRA would all lie on the ground.
    most = max(max(row["y"], row["noise"] or 0) for row in rows)
    scale = altair.Scale(type="symlog", constant=8, domain=[0, 1.1 * most + 1], nice=False)
    ticks = [2**power for power in range(20) if 2**power <= most][-9:]
    y = altair.Y(
        "y:Q",
        title="rank that keeps 90 % of the sum of squares",
        scale=scale,
        axis=altair.Axis(values=[0, *ticks], labelOverlap=True),
    )
    color = budget_color(summary, found)
    noise = [row for row in rows if row["noise"] is not None]
    drawn = style.chart(rows)
    layers = [
        *_noise_layers(noise),
        drawn.mark_line(strokeWidth=2, opacity=0.85).encode(
            x=x, y=y, color=color, strokeDash=style.dash(arms), detail="arm:N"
        ),
        drawn.mark_point(filled=True, opacity=1, size=60).encode(
            x=x,
            y=y,
            color=color,
            shape=style.shape(summary, arms),
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]
    line = "Colour: budget; shape and dashes: arm."
    lines = [line, *(["Grey: iid noise."] if noise else [])]
    return Panel(
        module,
        style.titled(layers, module, *lines),
        f"Rank of the updates of {module} against layer, coloured by budget, for "
        f"{', '.join(arms)}.",
    )


def layer_axis(rows: list[style.Row]) -> altair.Axis:
    """Whole layers only."""
    import altair

    layers = sorted({row["layer"] for row in rows})
    stride = -(-len(layers) // 9)
    return altair.Axis(values=layers[::stride], format="d", grid=False)


def budget_color(summary: Summary, found: list[Spectra]) -> altair.Color:
    """Pale to dark with the budget, the same in every panel."""
    import altair

    budgets = sorted({one.budget for one in found})
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
    return [lines.encode(x="layer:Q", y="noise:Q")]


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
)
