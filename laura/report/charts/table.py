"""The table of charts: a new one is a file that makes a `Chart`, and a line here.

One from outside joins with `CHARTS.append(own)`; it ends the page that it names.
"""

from __future__ import annotations

from laura.report.charts import lines, outputs, spectra, tradeoff
from laura.report.charts.style import Chart

CHARTS: list[Chart] = [
    tradeoff.TRADEOFF,
    tradeoff.FORGETTING,
    lines.LEARNING_CURVES,
    lines.DRIFTS,
    lines.LEARNING_RATES,
    lines.REGULARISERS,
    spectra.SPECTRA,
    spectra.INTRUDERS,
    outputs.DIVERSITY,
    outputs.PASS_AT_K,
    lines.REPLAY,
    lines.RANKS,
    lines.LOSS_CURVES,
]
