"""report.html and report.md, from a study folder alone; without network and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import jinja2
import vl_convert
from markupsafe import Markup

from laura.report import formats
from laura.report.blocks import Block, Document, Figure, Fold, LaidPage
from laura.report.figures import DrawnChart, draw_figures, inline_svg
from laura.report.markdown import document_text
from laura.report.pages.table import PAGES, ReportPage
from laura.report.study import Study, read_study
from laura.results.progress import SILENT, Progress
from laura.results.schema import Summary
from laura.results.store import write_text

Format = Literal["html", "md"]


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
    name, mark = read.summary.name, read.summary.base.fingerprint[:16]
    document = Document(
        kind=f"study {name}",
        title=f"{name}: learning and forgetting",
        headline=read.answer,
        facts=_facts(read.summary),
        pages=_with_charts(pages, charts),
        absent=absent,
        footer=f"Written by Laura {read.summary.laura}; base fingerprint {mark}; figures as SVG "
        "and PNG lie in the folder figures beside this file.",
    )
    return write_document(document, charts, study, form)


def lay_out(
    study: Study, table: Sequence[ReportPage]
) -> tuple[list[LaidPage], list[tuple[str, str]]]:
    """The pages there is something for, and of the others title and reason."""
    pages, absent = [], []
    for page in table:
        found = page.blocks(study)
        if isinstance(found, str):
            absent.append((page.title, found))
        else:
            pages.append(LaidPage(page.name, page.title, found))
    return pages, absent


def _with_charts(pages: list[LaidPage], charts: dict[str, DrawnChart]) -> list[LaidPage]:
    """The pages, each ended by the charts that name it and that no page puts at a place."""
    placed = {name for page in pages for name in _figures(page.blocks)}
    left = [chart for chart in charts.values() if chart.panels and chart.name not in placed]
    return [
        replace(page, blocks=[*page.blocks, *(Figure(c.name) for c in left if c.page == page.name)])
        for page in pages
    ]


def _figures(blocks: Sequence[Block]) -> list[str]:
    found: list[str] = []
    for block in blocks:
        found += [block.chart] if isinstance(block, Figure) else []
        found += _figures(block.blocks) if isinstance(block, Fold) else []
    return found


def write_document(
    document: Document, charts: dict[str, DrawnChart], folder: Path, form: Format
) -> Path:
    """Write FOLDER/report.html or report.md.

    Args:
        document: The report.
        charts: What the pages' figures name.
        folder: Where to.
        form: As for `write_report`.
    """
    target = folder / f"report.{form}"
    if form == "md":
        write_text(target, document_text(document, charts))
        return target
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laura.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline_svg
    environment.globals["charts"] = charts
    bundle = _bundle() if any(chart.panels for chart in charts.values()) else ""
    template = environment.get_template("report.html.jinja")
    write_text(target, template.render(document=document, bundle=bundle))
    return target


@cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script without any import."""
    # A closing tag inside a string literal would end the script element early.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _facts(summary: Summary) -> list[tuple[str, str]]:
    base = summary.base.model
    if summary.base.parameters:
        base += f" ({formats.count(summary.base.parameters)} parameters)"
    budgets = ", ".join(formats.budget_of(summary, point) for point in summary.budget.points)
    found = [
        ("base", base),
        ("domain", summary.domain),
        ("regime", summary.regime),
        ("budgets" if len(summary.budget.points) > 1 else "budget", budgets),
        ("arms", str(len(summary.arms))),
        ("runs", str(len(summary.runs))),
    ]
    return [(name, value) for name, value in found if value]
