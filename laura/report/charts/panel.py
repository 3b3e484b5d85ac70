"""What a chart is: a name, words on how to read it, and a function that draws panels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laura.report.charts.style import configuration
from laura.report.study import Study

if TYPE_CHECKING:
    import altair

PANEL_WIDTH = 400
PANEL_HEIGHT = 290


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        name: Short name, unique within its chart.
        drawing: The Altair layers, without width and height.
        height: Height in pixels.
        description: The panel in one sentence, read aloud by screen readers.
    """

    name: str
    drawing: altair.LayerChart
    description: str
    height: int = PANEL_HEIGHT


@dataclass(frozen=True)
class Chart:
    """One figure of the report.

    Attributes:
        name: Name of its files, figures/NAME.svg and figures/NAME.png.
        title: Heading on the page.
        explanation: How to read it, in plain language.
        draw: Gives the panels; none where the study holds nothing to draw.
        note: What must be said of this study's chart besides, such as which arms it holds.
    """

    name: str
    title: str
    explanation: str
    draw: Callable[[Study], list[Panel]]
    note: Callable[[Study], str] = lambda study: ""

    def caption(self, study: Study) -> str:
        """The explanation, and what must be said of this study's chart."""
        return f"{self.explanation} {self.note(study)}".strip()


def panel_specification(panel: Panel) -> dict[str, Any]:
    """Vega-Lite of one panel, without size and looks; page and figure are both made from it."""
    # Checking against the JSON Schema takes most of the time; a test does it instead.
    specification: dict[str, Any] = panel.drawing.to_dict(validate=False)
    specification.pop("config", None)
    return specification


def figure_specification(
    specifications: list[dict[str, Any]], heights: list[int]
) -> dict[str, Any]:
    """One Vega-Lite specification with every panel, for SVG and PNG.

    Args:
        specifications: From `panel_specification`, at least one.
        heights: Height of each panel in pixels.
    """
    datasets: dict[str, Any] = {}
    sized = []
    for specification, height in zip(specifications, heights, strict=True):
        inner = {k: v for k, v in specification.items() if k not in ("$schema", "datasets")}
        datasets |= specification.get("datasets", {})  # named by content, so names cannot clash
        sized.append({**inner, "width": PANEL_WIDTH, "height": height})
    return {
        "$schema": specifications[0]["$schema"],
        "concat": sized,
        "columns": 2,
        "spacing": 36,
        "datasets": datasets,
        "config": configuration(background="white"),
    }


def page_specification(specification: dict[str, Any], panel: Panel) -> dict[str, Any]:
    """The specification of one panel that fills the width it is given."""
    return {
        **specification,
        "width": "container",
        "height": panel.height,
        "description": panel.description,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": configuration(background=None),
    }
