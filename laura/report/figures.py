"""Figures of a report: each chart as SVG and PNG for a paper, and inside the page."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import vl_convert
from altair.utils.schemapi import debug_mode
from markupsafe import Markup

from laura.data.processes import map_in_order
from laura.report.charts import analyses, lines, tradeoff
from laura.report.charts.style import GREY, Chart, ChartPanel
from laura.report.study import Study
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults, write_bytes, write_text

# A new chart is a function that draws it, and a name here. One from outside joins with
# `CHARTS.append(own)`; it ends the page that it names.
CHARTS: list[Chart] = [
    tradeoff.tradeoff, tradeoff.forgetting_by_task, lines.learning_curves, lines.drift,
    lines.learning_rates, lines.regularisers, analyses.spectra, analyses.intruders,
    analyses.diversity, analyses.pass_at_k, lines.replay, lines.ranks, lines.loss_curves,
]  # fmt: skip
PIXELS_PER_POINT = 2.0
PANEL_WIDTH = 400
FIGURES = "figures"
INK = "#222222"
CONFIGURATION: dict[str, Any] = {
    "font": "sans-serif",
    "padding": 6,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "titleColor": INK,
        "labelColor": INK,
        "gridColor": "#E4E4E4",
        "domainColor": "#9A9A9A",
        "tickColor": "#9A9A9A",
    },
    "title": {
        "fontSize": 13.5,
        "fontWeight": 600,
        "subtitleFontSize": 11.5,
        "subtitlePadding": 4,
        "subtitleColor": "#555555",
        "color": INK,
        "offset": 12,
    },
    "legend": {
        "labelFontSize": 11.5,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "labelLimit": 220,
        "symbolOpacity": 1,
        "symbolBaseFillColor": GREY,
        "symbolBaseStrokeColor": GREY,
        "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 4}},
        "symbolStrokeWidth": 2,
        "labelColor": INK,
        "titleColor": INK,
    },
}
_IDS = re.compile(r'(?<=id=")[\w-]*clip\d+(?=")|(?<=url\(#)[\w-]*clip\d+(?=\))')


@dataclass(frozen=True)
class DrawnChart(Chart):
    """A chart as the page embeds it.

    Attributes:
        svg: The whole figure; empty where there was nothing to draw.
        description: The figure in words, for screen readers.
    """

    svg: str = ""
    description: str = ""


def draw_figures(study: Study, folder: Path, progress: Progress = SILENT) -> dict[str, DrawnChart]:
    """Write FOLDER/figures/NAME.svg and NAME.png of every chart that has something to draw.

    Returns:
        The charts by name, those without anything to draw too.

    Raises:
        StoreError: the folder cannot be written.
    """
    drawn, files = dict[str, DrawnChart](), deque[Path]()
    with progress.bar("Drawing the report", len(CHARTS), "figures") as bar:

        def pictures() -> Iterator[str]:
            for chart in CHARTS:
                bar.note(chart.name)
                drawn[chart.name] = made = draw_chart(chart, study, folder / FIGURES)
                if made.svg:
                    files.append(folder / FIGURES / f"{chart.name}.png")
                    yield made.svg
                bar.advance()

        # A PNG takes as long as all else of a figure, and holds the interpreter's lock. The other
        # process imports this function's library alone.
        to_png = partial(vl_convert.svg_to_png, scale=PIXELS_PER_POINT)
        for png in map_in_order(to_png, pictures(), 1):
            write_bytes(files.popleft(), png)
    return drawn


def draw_chart(chart: Chart, study: Study, folder: Path) -> DrawnChart:
    """Write a chart's SVG into a folder, or take an older report's files away."""
    # Checking against the JSON Schema takes most of the time; a test does it instead.
    with debug_mode(False):
        panels = chart.draw(study)
    svg_file = folder / f"{chart.name}.svg"
    if not panels:
        with disk_faults(folder):
            svg_file.unlink(missing_ok=True)
            svg_file.with_suffix(".png").unlink(missing_ok=True)
        return DrawnChart(**vars(chart))
    specifications = [panel.drawing.to_dict(validate=False) for panel in panels]
    svg = vl_convert.vegalite_to_svg(_figure(panels, specifications))
    # Clipping paths are numbered from zero; Vega counts on through the life of the process.
    numbers: dict[str, int] = {}
    svg = _IDS.sub(lambda m: f"clip{numbers.setdefault(m[0], len(numbers))}", svg)
    write_text(svg_file, svg)
    facts = {**vars(chart), "explanation": chart.caption(study)}
    return DrawnChart(**facts, svg=svg, description=" ".join(one.description for one in panels))


def _figure(panels: list[ChartPanel], specifications: list[dict[str, Any]]) -> dict[str, Any]:
    """One Vega-Lite specification with every panel, for SVG and PNG."""
    datasets: dict[str, Any] = {}
    sized = []
    for panel, specification in zip(panels, specifications, strict=True):
        datasets |= specification["datasets"]  # named by content, so names cannot clash
        # Altair puts data that all layers share beside them.
        inner = {k: v for k, v in specification.items() if k in ("data", "layer", "title")}
        sized.append({**inner, "width": PANEL_WIDTH, "height": panel.height})
    return {
        "$schema": specifications[0]["$schema"],
        "concat": sized,
        "columns": 2,
        "spacing": 36,
        "datasets": datasets,
        "config": {"background": "white", **CONFIGURATION},
    }


def inline_svg(svg: str, name: str) -> Markup:
    """An SVG that can stand among others on a page: no two have an id in common.

    Args:
        svg: Made by Vega, which escapes the texts it draws.
        name: Put before its ids.
    """
    return Markup(_IDS.sub(lambda found: f"{name}-{found[0]}", svg))


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a <script> element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
