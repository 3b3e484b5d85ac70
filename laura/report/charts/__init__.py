"""The charts of a report: one file each, and one line each in the table below."""

from __future__ import annotations

from laura.report.charts import (
    alphas,
    cost,
    diversity,
    drift,
    forgetting_by_task,
    intruders,
    learning_curves,
    learning_rates,
    loss_curves,
    pass_at_k,
    ranks,
    regularisers,
    replay,
    singular_values,
    spectra,
    tradeoff,
)
from laura.report.charts.panel import (
    Chart,
    Panel,
    figure_specification,
    page_specification,
    panel_specification,
)

CHARTS: tuple[Chart, ...] = (
    tradeoff.CHART,
    forgetting_by_task.CHART,
    learning_curves.CHART,
    drift.CHART,
    learning_rates.CHART,
    regularisers.CHART,
    spectra.CHART,
    singular_values.CHART,
    intruders.CHART,
    diversity.CHART,
    pass_at_k.CHART,
    replay.CHART,
    ranks.CHART,
    alphas.CHART,
    cost.CHART,
    loss_curves.CHART,
)

__all__ = [
    "CHARTS",
    "Chart",
    "Panel",
    "figure_specification",
    "page_specification",
    "panel_specification",
]
