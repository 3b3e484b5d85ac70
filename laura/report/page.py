"""report.html and report.md, from a study folder alone; without network and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from laura.report import formats
from laura.report.blocks import Block, ReportPage
from laura.report.figures import DrawnChart, draw_figures, inline_svg
from laura.report.markdown import Document, document_text
from laura.report.pages import PAGES
from laura.report.study import Study, read_study
from laura.results.progress import SILENT, Progress
from laura.results.schema import Summary
from laura.results.store import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

Format = Literal["html", "md"]

__all__ = ["Format", "Laid", "lay_out", "render", "write_report"]


@dataclass(frozen=True)
class Laid:
    """A page laid out; it is in the navigation unless there is nothing for it."""

    name: str
    title: str
    blocks: Sequence[Block]


def write_report(study: Path, progress: Progress = SILENT, form: Format = "html") -> Path:
    """Draw STUDY/report.html or report.md, and STUDY/figures/*.svg, *.png.

    Everything comes from the study folder: summary.json, and where they exist
    analysis.json, claims.json, recommendation.json, recipe.yaml, cost.json and the
    samples. What is missing is named. The same folder gives the same page, byte for byte.

    Args:
        study: The study folder.
        progress: Told about every figure.
        form: `html`, or `md` for Markdown that links the figures.

    Returns:
        The path of the report.

    Raises:
        StoreError: no study folder, no summary.json, a damaged one, or the
            folder cannot be written.
        UsageError: summary.json is of an older format.
    """
    read = read_study(study)
    charts = draw_figures(read, study, progress)
    pages, absent = lay_out(read, PAGES)
    name, headline = read.summary.name, read.answer
    facts, footer = _facts(read.summary), _footer(read.summary)
    if form == "md":
        target = study / "report.md"
        document = Document(f"study {name}", headline, facts, pages, absent, footer)
        write_text(target, document_text(document, charts))
        return target
    target = study / "report.html"
    write_text(
        target,
        render(
            kind=f"study {name}",
            title=f"{name}: learning and forgetting",
            headline=headline,
            facts=facts,
            pages=pages,
            absent=absent,
            charts=charts,
            footer=footer,
        ),
    )
    return target


def lay_out(study: Study, table: Sequence[ReportPage]) -> tuple[list[Laid], list[tuple[str, str]]]:
    """The pages there is something for, and of the others title and reason."""
    reasons = {page.name: page.missing(study) for page in table}
    pages = [
        Laid(page.name, page.title, page.blocks(study)) for page in table if not reasons[page.name]
    ]
    absent = [(page.title, reasons[page.name]) for page in table if reasons[page.name]]
    return pages, absent


def render(
    *,
    kind: str,
    title: str,
    headline: str,
    facts: Sequence[tuple[str, str]],
    pages: Sequence[Laid],
    absent: Sequence[tuple[str, str]],
    charts: dict[str, DrawnChart],
    footer: str,
) -> str:
    """The whole file.

    Args:
        kind: What it is a report of, above the headline.
        title: Of the window.
        headline: What was found, in a sentence.
        facts: Name and value, in a line below.
        pages: In the order of the navigation.
        absent: Title and reason of the pages there is nothing for.
        charts: What the pages' figures name.
        footer: Last line.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laura.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline_svg
    environment.globals["charts"] = charts
    return environment.get_template("report.html.jinja").render(
        kind=kind,
        title=title,
        headline=headline,
        facts=facts,
        pages=pages,
        absent=absent,
        footer=footer,
        bundle=_bundle() if any(chart.panels for chart in charts.values()) else "",
    )


@cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script without any import."""
    import vl_convert
    from markupsafe import Markup

    # A closing tag inside a string literal would end the script element early.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _facts(summary: Summary) -> list[tuple[str, str]]:
    base = summary.base.model
    if summary.base.parameters:
        base += f" ({formats.count(summary.base.parameters)} parameters)"
    budgets = ", ".join(formats.budget_of(summary, point) for point in summary.budget.points)
    found = [("base", base), ("domain", summary.domain), ("regime", summary.regime)]
    found += [("budgets" if len(summary.budget.points) > 1 else "budget", budgets)]
    found += [("arms", str(len(summary.arms))), ("runs", str(len(summary.runs)))]
    return [(name, value) for name, value in found if value]


def _footer(summary: Summary) -> str:
    mark = f"; base fingerprint {summary.base.fingerprint[:16]}" if summary.base.fingerprint else ""
    return (
        f"Written by Laura {summary.laura}{mark}; figures as SVG and PNG lie in the folder "
        "figures beside this file."
    )
