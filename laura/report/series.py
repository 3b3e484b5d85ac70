"""The report of a series: an index of its settings, and the claims judged over all of them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from laura import __version__
from laura.errors import StoreError
from laura.report import formats
from laura.report.blocks import (
    Block,
    Cell,
    Column,
    Heading,
    Link,
    Notice,
    Prose,
    Still,
    Table,
)
from laura.report.claims import VERDICTS, Claim, read_claims, read_gaps
from laura.report.figures import FIGURES
from laura.report.markdown import Document, document_text
from laura.report.page import Format, Laid, render
from laura.report.pages.claims import claims_blocks, counted
from laura.report.reading import Summary, read_summary
from laura.report.tables import lines, measured
from laura.store import SeriesStore, StudyStore, disk_faults, read_json, write_text

FIGURE = "tradeoff"


def write_series_report(folder: Path, form: Format = "html") -> Path:
    """Write SERIES/report.html or report.md beside the reports of the settings.

    The reports of the settings are linked, not repeated; draw them first.

    Args:
        folder: The folder of the series.
        form: As for `write_report`.

    Returns:
        The path of the report.

    Raises:
        StoreError: the folder holds no series, or a file of it is damaged.
    """
    store = SeriesStore(folder)
    settings = store.settings()
    if not settings:
        raise StoreError(f"{folder} holds no series (series.json); give `laura compare` again")
    name = str(read_json(store.file).get("name", folder.name))
    faults: list[str] = []
    found = _summaries(settings, faults)
    claims = _claims(folder, found, faults)
    pages = [Laid("overview", "Settings", _index(folder, found, faults, form))]
    if claims:
        pages.append(Laid("claims", "Claims", claims_blocks(claims)))
    headline, footer = _headline(claims, found), f"Written by Laura {__version__}."
    facts = [("settings", str(len(settings)))]
    facts += [("runs", str(sum(len(summary.runs) for summary in found.values())))]
    absent = [] if claims else [("Claims", "they were not judged; `laura report` does it")]
    target = folder / f"report.{form}"
    if form == "md":
        document = Document(f"series {name}", headline, facts, pages, absent, footer)
        text = document_text(document, {})
    else:
        text = render(
            kind=f"series {name}",
            title=f"{name}: {len(settings)} settings",
            headline=headline,
            facts=facts,
            pages=pages,
            absent=absent,
            charts={},
            footer=footer,
        )
    write_text(target, text)
    return target


def _summaries(settings: dict[str, StudyStore], faults: list[str]) -> dict[str, Summary]:
    """The summary of each setting that has a whole one."""
    found = {}
    for name, study in settings.items():
        if not study.summary_file.is_file():
            faults.append(f"Setting {name} was not carried out yet.")
            continue
        try:
            found[name] = read_summary(study.folder)
        except StoreError as error:
            faults.append(f"Setting {name} is not shown: {error}.")
    return found


def _claims(folder: Path, found: dict[str, Summary], faults: list[str]) -> list[Claim]:
    try:
        claims = read_claims(folder)
        # Of the other settings it is told already that they are not there.
        gaps = [gap for gap in read_gaps(folder) if gap.partition(": ")[0] in found]
        faults += [f"In the claims, setting {gap}." for gap in gaps]
        return claims
    except StoreError as error:
        faults.append(f"Claims are not shown: {error}.")
        return []


def _headline(claims: list[Claim], found: dict[str, Summary]) -> str:
    if not claims:
        return f"{len(found)} settings; each has a verdict of its own"
    told = counted(claims)
    listed = ", ".join(f"{told[verdict]} {verdict}" for verdict in VERDICTS)
    return f"Of {len(claims)} claims over {len(found)} settings: {listed}"


def _index(folder: Path, found: dict[str, Summary], faults: list[str], form: Format) -> list[Block]:
    columns = [
        Column("setting"),
        Column("domain"),
        Column("regime"),
        Column("runs done", numeric=True),
        Column("verdict", wide=True),
    ]
    rows = [
        [
            Cell(name),
            Cell(summary.domain),
            Cell(summary.regime),
            Cell(f"{sum(run.state == 'done' for run in summary.runs)} of {len(summary.runs)}"),
            Cell(summary.verdict.headline),
        ]
        for name, summary in found.items()
    ]
    blocks: list[Block] = [Table("settings-table", "Settings and their verdicts", columns, rows)]
    if faults:
        blocks.append(Notice("What is missing", faults, warns=True))
    for place, (name, summary) in enumerate(found.items()):
        blocks += _setting(folder, name, summary, place, form)
    return blocks


def _setting(folder: Path, name: str, summary: Summary, place: int, form: Format) -> list[Block]:
    place_of = f"settings/{quote(name)}"
    study = SeriesStore(folder).setting(name).folder
    blocks: list[Block] = [
        Heading(name, f"setting-{place}"),
        Prose(summary.verdict.headline),
        _scores(summary, place),
    ]
    picture = study / FIGURES / f"{FIGURE}.svg"
    if picture.is_file():
        with disk_faults(picture):
            svg = picture.read_text(encoding="utf-8")
        text = f"Trade-off of learning and forgetting in {name}."
        blocks.append(Still(f"setting-{place}", f"{place_of}/{FIGURES}/{FIGURE}.svg", svg, text))
    if (study / f"report.{form}").is_file():
        blocks.append(Link(f"{place_of}/report.{form}", f"The report of {name}"))
    return blocks


def _scores(summary: Summary, place: int) -> Table:
    """The arms at their best rate and largest budget: leading task and first forgetting."""
    tasks = measured(summary)
    wanted = [
        at
        for at, task in enumerate(tasks)
        if task.name in (summary.primary, *summary.forgetting_measures[:1])
    ]
    last = {line.arm: line for line in lines(summary, tasks)}
    columns = [Column("arm"), Column("rate", numeric=True), Column("budget", numeric=True)]
    columns += [
        Column(f"{tasks[at].short_title}, {formats.unit(tasks[at])}", "change", numeric=True)
        for at in wanted
    ]
    rows = [
        [
            Cell(line.arm),
            Cell(line.rate),
            Cell(line.budget),
            *(Cell(line.cells[at].value, line.cells[at].change if line.runs else "")
              for at in wanted),
        ]
        for line in last.values()
    ]  # fmt: skip
    caption = "Arms at their best rate and largest budget"
    return Table(f"setting-{place}-arms", caption, columns, rows)
