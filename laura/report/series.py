"""The report of a series: an index of its settings, and the claims judged over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from laura import __version__
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
from laura.report.figures import FIGURES
from laura.report.markdown import Document, document_text
from laura.report.page import Format, Laid, render
from laura.report.pages.claims import claims_blocks, counted
from laura.report.study import read_summary
from laura.report.tables import lines, measured
from laura.results.errors import StoreError, UsageError
from laura.results.schema import CLAIMS_FILE, VERDICTS, Judgement, Summary, read_optional
from laura.results.store import SeriesStore, StudyStore, disk_faults, read_json, write_text

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
    found = _settings(settings, faults)
    judged = _judgement(folder, found, faults)
    claims = judged.claims if judged else []
    pages = [Laid("overview", "Settings", _index(folder, found, judged, faults, form))]
    if claims:
        pages.append(Laid("claims", "Claims", claims_blocks(claims)))
    headline = judged.answer if judged else f"{len(found)} settings; each has an answer of its own"
    footer = f"Written by Laura {__version__}."
    facts = [("settings", str(len(settings)))]
    facts += [("runs", str(sum(len(one.summary.runs) for one in found.values())))]
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


@dataclass(frozen=True)
class _Setting:
    """A study of the series: what was run, and what it concludes alone."""

    summary: Summary
    answer: str


def _settings(settings: dict[str, StudyStore], faults: list[str]) -> dict[str, _Setting]:
    """Each setting that has a whole summary."""
    found = {}
    for name, study in settings.items():
        if not study.summary_file.is_file():
            faults.append(f"Setting {name} was not carried out yet.")
            continue
        try:
            summary = read_summary(study.folder)
        except (StoreError, UsageError) as error:
            faults.append(f"Setting {name} is not shown: {error}.")
            continue
        try:
            judged = read_optional(Judgement, study.folder / CLAIMS_FILE)
        except (StoreError, UsageError) as error:
            faults.append(f"Setting {name} has no answer: {error}.")
            judged = None
        found[name] = _Setting(summary, judged.answer if judged else "It was not judged.")
    return found


def _judgement(folder: Path, found: dict[str, _Setting], faults: list[str]) -> Judgement | None:
    try:
        judged = read_optional(Judgement, folder / CLAIMS_FILE)
    except (StoreError, UsageError) as error:
        faults.append(f"Claims are not shown: {error}.")
        return None
    if judged is not None:
        # Of the settings judged their own reports tell; of those not here it is told already.
        told = tuple(f"{setting.name}: " for setting in judged.settings)
        gaps = [gap for gap in judged.gaps if not gap.startswith(told)]
        gaps = [gap for gap in gaps if gap.partition(": ")[0] in found]
        faults += [f"In the claims, setting {gap}." for gap in gaps]
    return judged


def _in_short(judged: Judgement) -> list[Block]:
    """What the settings say together."""
    told = counted(judged.claims)
    listed = ", ".join(f"{told[verdict]} {verdict}" for verdict in VERDICTS if told[verdict])
    found: list[Block] = [Prose(sentence) for sentence in judged.sentences]
    if judged.claims:
        found.append(Prose(f"Of {len(judged.claims)} claims over all settings: {listed}."))
    if judged.caveats:
        found.append(Notice("Caveats", judged.caveats))
    return found


def _index(
    folder: Path,
    found: dict[str, _Setting],
    judged: Judgement | None,
    faults: list[str],
    form: Format,
) -> list[Block]:
    columns = [
        Column("setting"),
        Column("domain"),
        Column("regime"),
        Column("runs done", numeric=True),
        Column("answer", wide=True),
    ]
    rows = [
        [
            Cell(name),
            Cell(one.summary.domain),
            Cell(one.summary.regime),
            Cell(_done(one.summary)),
            Cell(one.answer),
        ]
        for name, one in found.items()
    ]
    blocks = _in_short(judged) if judged else []
    blocks.append(Table("settings-table", "Settings and their answers", columns, rows))
    if faults:
        blocks.append(Notice("What is missing", faults, warns=True))
    for place, (name, one) in enumerate(found.items()):
        blocks += _setting_blocks(folder, name, one, place, form)
    return blocks


def _done(summary: Summary) -> str:
    return f"{sum(run.state == 'done' for run in summary.runs)} of {len(summary.runs)}"


def _setting_blocks(
    folder: Path, name: str, one: _Setting, place: int, form: Format
) -> list[Block]:
    place_of = f"settings/{quote(name)}"
    study = SeriesStore(folder).setting(name).folder
    blocks: list[Block] = [
        Heading(name, f"setting-{place}"),
        Prose(one.answer),
        _scores(one.summary, place),
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
        Column(
            f"{tasks[at].short_title}, {formats.unit(tasks[at])}",
            "learnt" if tasks[at].name in summary.measure.learning else "forgot",
            numeric=True,
        )
        for at in wanted
    ]
    rows = [
        [
            Cell(line.arm),
            Cell(line.rate),
            Cell(line.budget),
            *(Cell(line.cells[at].value, line.cells[at].moved if line.runs else "")
              for at in wanted),
        ]
        for line in last.values()
    ]  # fmt: skip
    caption = "Arms at their best rate and largest budget"
    return Table(f"setting-{place}-arms", caption, columns, rows)
