"""Intruder dimensions against layer, one line an arm (Shuttleworth et al. 2025)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.charts.spectra import arms_note, of_representatives
from laura.report.study import Study

if TYPE_CHECKING:
    import altair

TOOLTIPS = {"arm": "arm", "layer": "layer", "value": "intruders a matrix", "n": "matrices"}


def draw(study: Study) -> list[Panel]:
    """One panel, arms at their largest budget; none where they were not counted."""
    import altair

    found = of_representatives(study)
    largest = {
        one.arm: max(other.budget for other in found if other.arm == one.arm) for one in found
    }
    counts: dict[tuple[str, int], list[float]] = {}
    for one in found:
        if one.budget == largest[one.arm]:
            for matrix in one.matrices:
                if matrix.intruders is not None and matrix.layer is not None:
                    counts.setdefault((one.arm, matrix.layer), []).append(matrix.intruders)
    rows: list[style.Row] = [
        {
            "arm": arm,
            "layer": layer,
            "y": math.fsum(own) / len(own),
            "value": f"{math.fsum(own) / len(own):.2f}",
            "n": str(len(own)),
        }
        for (arm, layer), own in sorted(counts.items())
    ]
    if not rows:
        return []
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    x = altair.X("layer:Q", title="layer", axis=_layer_axis(rows))
    y = altair.Y("y:Q", title="intruder dimensions a matrix, mean")
    color, drawn = style.color(study.summary, arms), style.chart(rows)
    layers = [
        drawn.mark_line(strokeWidth=2, opacity=0.8).encode(x=x, y=y, color=color),
        drawn.mark_point(filled=True, opacity=1, size=70).encode(
            x=x,
            y=y,
            color=color,
            shape=style.shape(study.summary, arms),
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]
    title = style.titled(layers, "Intruder dimensions", "Mean over the layer's matrices and seeds.")
    return [Panel("count", title, "Intruder dimensions a matrix against layer, one line an arm.")]


def _layer_axis(rows: list[style.Row]) -> altair.Axis:
    """Whole layers only."""
    import altair

    layers = sorted({row["layer"] for row in rows})
    stride = -(-len(layers) // 9)
    return altair.Axis(values=layers[::stride], format="d", grid=False)


CHART = Chart(
    name="intruders",
    title="Intruder dimensions",
    explanation=(
        "Leading directions of the tuned matrix that are like no direction of the base. Many of "
        "them go with forgetting, not with learning (Shuttleworth et al. 2025)."
    ),
    draw=draw,
    note=arms_note,
)
