"""The table of charts: a new one is a function that draws it, and a name here.

One from outside joins with `CHARTS.append(own)`; it ends the page that it names.
"""

from __future__ import annotations

from laura.report.charts import lines, outputs, spectra, tradeoff
from laura.report.charts.style import Chart

CHARTS: list[Chart] = [
    tradeoff.tradeoff, tradeoff.forgetting_by_task, lines.learning_curves, lines.drift,
    lines.learning_rates, lines.regularisers, spectra.spectra, spectra.intruders,
    outputs.diversity, outputs.pass_at_k, lines.replay, lines.ranks, lines.loss_curves,
]  # fmt: skip
