"""report.html and report.md, from a study folder alone; without network and without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jinja2

from laura.report import formats
from laura.report.blocks import (
    AnswerColumns,
    Block,
    Document,
    Figure,
    Fold,
    LaidPage,
    Link,
    Listing,
    Notice,
    Prose,
    Still,
    Subheading,
    Table,
    TableCell,
    Verbatim,
)
from laura.report.explore import Story, tell
from laura.report.figures import FIGURES, DrawnChart, draw_figures, inline_svg, script_json
from laura.report.pages import analyses, overview
from laura.report.samples.text import SampleText
from laura.report.study import Study, read_study
from laura.results.progress import SILENT, Progress
from laura.results.schema import Summary
from laura.results.store import write_text

Format = Literal["html", "md"]


@dataclass(frozen=True)
class ReportPage:
    """One page of the report.

    Attributes:
        name: What a link calls it.
        title: Its heading, and its name in the navigation.
        blocks: What stands on it; or why the study has nothing for it, and how to get it.
        only: The one form that has it: the other tells it in another way.
    """

    name: str
    title: str
    blocks: Callable[[Study], list[Block] | str]
    only: Format | None = None


# A new page is a function that gives its blocks, and a line here.
PAGES: tuple[ReportPage, ...] = (
    ReportPage("overview", "Overview", overview.overview, only="md"),
    ReportPage("settings", "How it was measured", analyses.settings),
    ReportPage("numbers", "All numbers", overview.numbers, only="html"),
    ReportPage("claims", "All statements", overview.claims),
    ReportPage("scores", "Learning and forgetting", overview.scores),
    ReportPage("learning-rate", "Learning rate", overview.learning_rate),
    ReportPage("regularisers", "Regularisers", overview.regularisers),
    ReportPage("spectra", "Spectra", analyses.spectra),
    ReportPage("diversity", "Diversity and pass@k", analyses.diversity),
    ReportPage("replay", "Replay", overview.replay),
    ReportPage("variants", "Modules, rank, alpha", overview.variants),
    ReportPage("cost", "Cost", analyses.cost),
    ReportPage("runs", "Runs", overview.runs),
    ReportPage("samples", "Samples", analyses.samples, only="md"),
)


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
    pages, absent = lay_out(read, form)
    name, mark = read.summary.name, read.summary.base.fingerprint[:16]
    document = Document(
        kind=f"study {name}",
        title=f"{name}: learning and forgetting",
        headline=read.answer,
        facts=_facts(read.summary),
        pages=_with_charts(pages, charts, form),
        absent=absent,
        footer=f"Written by Laura {read.summary.laura}; base fingerprint {mark}; figures as SVG "
        "and PNG lie in the folder figures beside this file.",
    )
    if form == "md":
        return write_markdown(document, charts, study)
    return write_page(document, tell(read, study), study, charts)


def lay_out(study: Study, form: Format) -> tuple[list[LaidPage], list[tuple[str, str]]]:
    """The pages there is something for, and of the others title and reason."""
    pages, absent = [], []
    for page in PAGES:
        if page.only not in (None, form):
            continue
        found = page.blocks(study)
        if isinstance(found, str):
            absent.append((page.title, found))
        else:
            pages.append(LaidPage(page.name, page.title, found))
    return pages, absent


def _with_charts(
    pages: list[LaidPage], charts: dict[str, DrawnChart], form: Format
) -> list[LaidPage]:
    """The pages, each ended by the charts that name it and that no page puts at a place."""
    placed = {name for page in pages for name in _figures(page.blocks)}
    placed |= {"tradeoff"} if form == "html" else set()  # the story has it
    left = [chart for chart in charts.values() if chart.svg and chart.name not in placed]
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


def write_markdown(document: Document, charts: Mapping[str, DrawnChart], folder: Path) -> Path:
    """Write FOLDER/report.md; `charts` are what the pages' figures name."""
    target = folder / "report.md"
    write_text(target, document_text(document, charts))
    return target


def write_page(
    document: Document,
    story: Story,
    folder: Path,
    charts: Mapping[str, DrawnChart],
    lead: Sequence[Block] = (),
) -> Path:
    """Write FOLDER/report.html, which holds all that it shows.

    Args:
        document: Its tables, behind the story.
        story: The answer, the trade-off, the questions, the evidence.
        folder: Where to.
        charts: What the pages' figures name.
        lead: What stands between answer and trade-off.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laura.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline_svg
    environment.globals["charts"] = charts
    target, template = folder / "report.html", environment.get_template("report.html.jinja")
    data = script_json({"settings": story.settings, "evidence": story.evidence})
    write_text(target, template.render(document=document, story=story, data=data, lead=lead))
    return target


def _facts(summary: Summary) -> list[tuple[str, str]]:
    base = summary.base.model
    if summary.base.parameters:
        base += f" ({formats.count(summary.base.parameters)} parameters)"
    if summary.base.quantization:
        base += f" in {summary.base.quantization}"
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


# ----- Markdown, for a repository or a paper: the same blocks as the page's -----


def document_text(document: Document, charts: Mapping[str, DrawnChart]) -> str:
    """The whole file."""
    told = " · ".join(f"{escaped(name)} **{escaped(value)}**" for name, value in document.facts)
    parts = [f"# {escaped(document.headline)}", f"Laura report · {escaped(document.kind)}", told]
    for page in document.pages:
        parts.append(f"## {escaped(page.title)}")
        parts += _blocks(page.blocks, charts)
    if document.absent:
        parts.append("## Not in this report")
        parts.append("\n".join(f"- **{escaped(t)}**: {escaped(r)}." for t, r in document.absent))
    parts += ["---", escaped(document.footer)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _blocks(blocks: Sequence[Block], charts: Mapping[str, DrawnChart]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Subheading():
                yield f"### {escaped(block.text)}"
            case Prose():
                yield escaped(block.text)
            case Notice():
                yield f"**{escaped(block.title)}**"
                yield "\n".join(f"- {escaped(sentence)}" for sentence in block.sentences)
            case Listing():
                yield "\n".join(f"- **{escaped(term)}** {escaped(t)}" for term, t in block.items)
            case Table():
                yield from _table(block)
            case Figure():
                yield from _figure(charts[block.chart])
            case Still():
                yield f"![{escaped(block.description)}]({block.file})"
            case Link():
                yield f"[{escaped(block.text)}]({block.file})"
            case Fold():
                yield f"### {escaped(block.title)}"
                yield from _blocks(block.blocks, charts)
            case Verbatim():
                yield fenced(block.text)
            case AnswerColumns():
                yield from _answers(block)


def _figure(chart: DrawnChart) -> Iterator[str]:
    yield f"### {escaped(chart.title)}"
    if not chart.svg:
        yield "Nothing to draw: the study holds no measured run for this chart."
        return
    yield f"![{escaped(chart.description)}]({FIGURES}/{chart.name}.svg)"
    yield escaped(chart.explanation)


def _table(block: Table) -> Iterator[str]:
    heads = [escaped(c.heading + (f" ({c.note})" if c.note else "")) for c in block.columns]
    rule = ["---:" if column.numeric else "---" for column in block.columns]
    rows = [heads, rule, *([_cell(cell) for cell in row] for row in block.rows)]
    yield f"*{escaped(block.caption)}*"
    yield "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(cell: TableCell) -> str:
    text = escaped(cell.text)
    if cell.code and re.fullmatch(r"[\w.-]+", cell.text):
        text = f"`{cell.text}`"
    return f"{text} ({escaped(cell.below)})" if cell.below else text


def _answers(block: AnswerColumns) -> Iterator[str]:
    words = ", ".join(f"{one.model} {one.word}" for one in block.item.answers)
    yield f"#### {escaped(block.item.heading)}: {escaped(words)}"
    yield from _texts(block.item.shared)
    for answer in block.item.answers:
        yield f"**{escaped(answer.model)}: {answer.word}**"
        yield from _texts(answer.texts)


def _texts(texts: Sequence[SampleText]) -> Iterator[str]:
    for text in texts:
        note = f" ({escaped(text.note)})" if text.note else ""
        yield f"{escaped(text.title)}{note}:"
        yield fenced(text.text)


def escaped(text: str) -> str:
    """Text on one line that Markdown takes as it is: no HTML, no table, no emphasis, no link.

    What stands between backticks stays code.
    """
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    told = "".join(
        part.replace("|", "\\|") if at % 2 else _plain(part) for at, part in enumerate(parts)
    )
    return re.sub(r"^([-+]|\d+[.)])(?=\s)", r"\\\1", told)


def _plain(text: str) -> str:
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, safe)
    return re.sub(r"([\\`|*_\[\]#~])", r"\\\1", text)


def fenced(text: str) -> str:
    """Text as a block of code, with a fence that nothing in it can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
