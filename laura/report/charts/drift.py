"""Divergence of the tuned models' predictions from the base's, against tokens trained on."""

from __future__ import annotations

from laura.recipe.tasks import DRIFT
from laura.report.charts import learning_curves, style
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study


def draw(study: Study) -> list[Panel]:
    """One panel for each divergence that was measured: forward and reverse, target and source."""
    summary = study.summary
    measured = {*summary.measure.learning, *summary.measure.forgetting}
    return learning_curves.panels(summary, [name for name in DRIFT if name in measured])


CHART = Chart(
    name="drift",
    title="Divergence from the base",
    explanation=(
        "How far each arm's predictions have moved from the base's, at its best rate after each "
        "budget (mean over seeds): KL(base || tuned) is large where the base's likely words have "
        "become unlikely, KL(tuned || base) where new ones have become likely. On target inputs "
        "some of it is what was to be learnt; on source text all of it is drift. The base is at 0."
    ),
    draw=draw,
    note=style.colour_note,
)
