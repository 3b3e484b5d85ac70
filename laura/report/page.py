"""report.html and the figures, from a study folder alone; without network and without torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.errors import StoreError
from laura.progress import SILENT, Progress
from laura.report import formats
from laura.report.charts import (
    CHARTS,
    Chart,
    Panel,
    figure_specification,
    page_specification,
    panel_specification,
)
from laura.report.costs import Costs, read_costs
from laura.report.gaps import STATE_WORDS, gaps
from laura.report.png import smaller
from laura.report.reading import Summary, read_summary
from laura.report.tables import lines, measured
from laura.store import disk_faults, write_bytes, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

PIXELS_PER_POINT = 2.0
RUNS_SHOWN_OPEN = 12


@dataclass(frozen=True)
class DrawnPanel:
    """A panel as the page embeds it."""

    id: str
    height: int
    description: str
    specification: Markup


@dataclass(frozen=True)
class DrawnChart:
    """A chart as the page embeds it; no panels where there was nothing to draw."""

    name: str
    title: str
    explanation: str
    panels: list[DrawnPanel]
    svg: Markup


def write_report(study: Path, progress: Progress = SILENT) -> Path:
    """Draw STUDY/report.html and STUDY/figures/*.svg, *.png.

    Everything comes from the study folder: summary.json, and where they exist
    recipe.yaml and cost.json. Runs, tasks or arms that are missing are named on
    the page. The same folder gives the same page, byte for byte.

    Args:
        study: The study folder.
        progress: Told about every figure.

    Returns:
        The path of report.html.

    Raises:
        StoreError: no study folder, no summary.json, a damaged one, or the
            folder cannot be written.
    """
    summary = read_summary(study)
    with progress.bar("Drawing the report", len(CHARTS) + 1, "steps") as bar:
        drawn = []
        for chart in CHARTS:
            bar.note(chart.name)
            drawn.append(_draw(chart, summary, study / "figures"))
            bar.advance()
        bar.note("page")
        page = study / "report.html"
        write_text(page, _render(summary, drawn, study))
        bar.advance()
    return page


def _draw(chart: Chart, summary: Summary, folder: Path) -> DrawnChart:
    import vl_convert
    from markupsafe import Markup

    panels = chart.draw(summary)
    svg_file, png_file = folder / f"{chart.name}.svg", folder / f"{chart.name}.png"
    if not panels:
        # An older report's figure must not stay beside a page that does not show it.
        with disk_faults(folder):
            svg_file.unlink(missing_ok=True)
            png_file.unlink(missing_ok=True)
        return DrawnChart(chart.name, chart.title, chart.explanation, [], Markup())
    specifications = [panel_specification(panel) for panel in panels]
    figure = figure_specification(specifications, [panel.height for panel in panels])
    svg = _renumber(vl_convert.vegalite_to_svg(figure))
    write_text(svg_file, svg)
    write_bytes(png_file, smaller(vl_convert.svg_to_png(svg, scale=PIXELS_PER_POINT)))
    return DrawnChart(
        chart.name,
        chart.title,
        chart.explanation,
        [_drawn_panel(chart, *pair) for pair in zip(panels, specifications, strict=True)],
        Markup(svg),  # made by Vega, which escapes the texts it draws
    )


def _renumber(svg: str) -> str:
    """Number clipping paths from zero; Vega counts on through the life of the process."""
    pattern = re.compile(r'(?<=id=")clip\d+(?=")|(?<=url\(#)clip\d+(?=\))')
    numbers: dict[str, int] = {}
    return pattern.sub(lambda m: f"clip{numbers.setdefault(m[0], len(numbers))}", svg)


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


@cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script without any import."""
    import vl_convert
    from markupsafe import Markup

    # A closing tag inside a string literal would end the script element early.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _render(summary: Summary, charts: list[DrawnChart], study: Path) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laura.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rate": formats.rate,
        "count": formats.count,
        "memory": formats.memory,
        "duration": formats.duration,
    }
    costs, cost_gap = _costs(study)
    shown = measured(summary)
    missing = [*gaps(summary), *([cost_gap] if cost_gap else [])]
    return environment.get_template("report.html.jinja").render(
        summary=summary,
        budgets=[formats.budget_of(summary, point) for point in summary.budget_points],
        charts=charts,
        measured=shown,
        lines=lines(summary, shown),
        gaps=missing,
        run_rows=_run_rows(summary),
        runs_open=len(summary.runs) <= RUNS_SHOWN_OPEN,
        tasks=_task_rows(summary),
        arms=_arm_rows(summary),
        costs=costs,
        recipe=_recipe(study),
        bundle=_bundle() if any(chart.panels for chart in charts) else "",
    )


def _costs(study: Path) -> tuple[Costs | None, str]:
    """Costs, or why there are none; they are extra, so a damaged file does not stop the report."""
    try:
        return read_costs(study), ""
    except StoreError as error:
        return None, f"Costs are not shown: {error}."


def _recipe(study: Path) -> str:
    try:
        with disk_faults(study / "recipe.yaml"):
            return (study / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    except StoreError:
        return ""


def _run_rows(summary: Summary) -> list[dict[str, str]]:
    return [
        {
            "id": run.id,
            "arm": run.arm,
            "rate": formats.rate(run.learning_rate),
            "seed": str(run.seed),
            "budget": formats.budget_of(summary, run.budget),
            "state": run.state,
            "words": STATE_WORDS.get(run.state, run.state),
            "reason": run.reason,
            "selected": "yes" if run.selected else "",
        }
        for run in summary.runs
    ]


def _task_rows(summary: Summary) -> list[dict[str, str]]:
    rows = []
    sides = (("learning", summary.learning), ("forgetting", summary.forgetting))
    for side, names in sides:
        for name in names:
            task = summary.task(name)
            rows.append(
                {
                    "side": side,
                    "title": task.title,
                    "name": name,
                    "unit": "share, shown in %" if task.is_share else task.unit,
                    "direction": "higher" if task.higher_is_better else "lower",
                    "n": str(task.n) if task.n else formats.ABSENT,
                    "base": formats.value(summary.base(name), task, True),
                }
            )
    return rows


def _arm_rows(summary: Summary) -> list[dict[str, str]]:
    return [
        {
            "name": arm.name,
            "method": arm.method,
            "settings": ", ".join(f"{key} {_setting(arm.settings[key])}" for key in arm.settings),
            "parameters": formats.count(arm.trainable_parameters),
            "rates": ", ".join(formats.rate(rate) for rate in arm.learning_rates),
            "best": formats.rate(arm.best_learning_rate),
        }
        for arm in summary.arms
    ]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
