"""Figures of a report: each chart as SVG and PNG for a paper, and ready for the page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.report.charts import (
    CHARTS,
    Chart,
    Panel,
    figure_specification,
    page_specification,
    panel_specification,
)
from laura.report.png import smaller
from laura.report.study import Study
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults, write_bytes, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

PIXELS_PER_POINT = 2.0
FIGURES = "figures"
_IDS = re.compile(r'(?<=id=")[\w-]*clip\d+(?=")|(?<=url\(#)[\w-]*clip\d+(?=\))')


@dataclass(frozen=True)
class DrawnPanel:
    """A panel as the page embeds it."""

    id: str
    height: int
    description: str
    specification: Markup


@dataclass(frozen=True)
class DrawnChart:
    """A chart as the page embeds it; no panels where there was nothing to draw.

    Attributes:
        svg: The whole figure, standing still: for print, and where scripts do not run.
    """

    name: str
    title: str
    explanation: str
    panels: list[DrawnPanel] = field(default_factory=list)
    svg: str = ""

    @property
    def description(self) -> str:
        """The figure in words, for screen readers."""
        return " ".join(panel.description for panel in self.panels)


def draw_figures(study: Study, folder: Path, progress: Progress = SILENT) -> dict[str, DrawnChart]:
    """Write FOLDER/figures/NAME.svg and NAME.png of every chart that has something to draw.

    Returns:
        The charts by name, those without anything to draw too.

    Raises:
        StoreError: the folder cannot be written.
    """
    drawn = {}
    with progress.bar("Drawing the report", len(CHARTS), "figures") as bar:
        for chart in CHARTS:
            bar.note(chart.name)
            drawn[chart.name] = _draw(chart, study, folder / FIGURES)
            bar.advance()
    return drawn


def _draw(chart: Chart, study: Study, folder: Path) -> DrawnChart:
    import vl_convert

    panels = chart.draw(study)
    svg_file, png_file = folder / f"{chart.name}.svg", folder / f"{chart.name}.png"
    if not panels:
        # An older report's figure must not stay beside a page that does not show it.
        with disk_faults(folder):
            svg_file.unlink(missing_ok=True)
            png_file.unlink(missing_ok=True)
        return DrawnChart(chart.name, chart.title, chart.explanation)
    specifications = [panel_specification(panel) for panel in panels]
    figure = figure_specification(specifications, [panel.height for panel in panels])
    svg = _renumber(vl_convert.vegalite_to_svg(figure))
    write_text(svg_file, svg)
    write_bytes(png_file, smaller(vl_convert.svg_to_png(svg, scale=PIXELS_PER_POINT)))
    return DrawnChart(
        chart.name,
        chart.title,
        chart.caption(study),
        [_drawn_panel(chart, *pair) for pair in zip(panels, specifications, strict=True)],
        svg,
    )


def _renumber(svg: str) -> str:
    """Number clipping paths from zero; Vega counts on through the life of the process."""
    numbers: dict[str, int] = {}
    return _IDS.sub(lambda m: f"clip{numbers.setdefault(m[0], len(numbers))}", svg)


def inline_svg(svg: str, name: str) -> Markup:
    """An SVG that can stand among others on a page: no two have an id in common.

    Args:
        svg: Made by Vega, which escapes the texts it draws.
        name: Put before its ids.
    """
    from markupsafe import Markup

    return Markup(_IDS.sub(lambda found: f"{name}-{found[0]}", svg))


def _drawn_panel(chart: Chart, panel: Panel, specification: dict[str, Any]) -> DrawnPanel:
    return DrawnPanel(
        id=f"{chart.name}-{panel.name}",
        height=panel.height,
        description=panel.description,
        specification=script_json(page_specification(specification, panel)),
    )


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a <script> element whatever texts it holds."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
