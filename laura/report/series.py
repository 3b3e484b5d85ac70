"""The report of a series: an index of its settings, and the claims judged over all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

from laura import __version__
from laura.report.blocks import (
    Block,
    Column,
    Document,
    LaidPage,
    Link,
    Notice,
    Prose,
    Still,
    Subheading,
    Table,
    number,
    table,
    wide,
)
from laura.report.explore import Story, evidence, setting_value
from laura.report.figures import FIGURES
from laura.report.html import Format, write_markdown, write_page
from laura.report.pages.overview import claims_blocks, counted
from laura.report.study import Study, read_or_note, read_summary
from laura.report.tables import measured, score_column, score_rows
from laura.results.errors import StoreError
from laura.results.schema import (
    CLAIMS_FILE,
    SUMMARY_FILE,
    VERDICTS,
    Judgement,
    Summary,
    read_optional,
)
from laura.results.store import SeriesStore, read_json

FIGURE = f"{FIGURES}/tradeoff.svg"


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
    names = list(store.settings())
    if not names:
        raise StoreError(f"{folder} holds no series (series.json); give `laura compare` again")
    name = str(read_json(store.file).get("name", folder.name))
    faults: list[str] = []
    found = _settings(store, names, faults)
    judged = _judgement(folder, found, faults)
    claims = judged.claims if judged else []
    pages = [LaidPage("claims", "All statements", claims_blocks(claims))] if claims else []
    runs = sum(len(one.summary.runs) for one in found.values())
    alone = f"{len(found)} settings; each has an answer of its own"
    document = Document(
        kind=f"series {name}",
        title=f"{name}: {len(names)} settings",
        headline=judged.answer if judged else alone,
        facts=[("settings", str(len(names))), ("runs", str(runs))],
        pages=pages,
        absent=[] if claims else [("Claims", "they were not judged; `laura report` does it")],
        footer=f"Written by Laura {__version__}.",
    )
    if form == "md":
        index = LaidPage("overview", "Settings", _index(folder, found, judged, faults))
        return write_markdown(replace(document, pages=[index, *pages]), {}, folder)
    values = [
        setting_value(one, store.setting(name).folder, faults, 1 / len(found), name)
        for name, one in found.items()
    ]
    notes = [*(judged.caveats if judged else []), *faults]
    story = Story(judged, evidence=evidence(judged), settings=values, notes=notes)
    lead = [_answers(found), *(_link(folder, name, "html") for name in found)]
    return write_page(document, story, folder, {}, [block for block in lead if block])


def _settings(store: SeriesStore, names: list[str], faults: list[str]) -> dict[str, Study]:
    """Each setting that has a whole summary: that, and what it concludes alone."""
    found = {}
    for name in names:
        folder = store.setting(name).folder
        if not (folder / SUMMARY_FILE).is_file():
            faults.append(f"Setting {name} was not carried out yet.")
            continue
        read = partial(read_summary, folder)
        summary = read_or_note(faults, f"Setting {name} is not shown", read, None)
        if summary is not None:
            claims = partial(read_optional, Judgement, folder / CLAIMS_FILE)
            judged = read_or_note(faults, f"Setting {name} has no answer", claims, None)
            found[name] = Study(summary, judgement=judged)
    return found


def _judgement(folder: Path, found: dict[str, Study], faults: list[str]) -> Judgement | None:
    read = partial(read_optional, Judgement, folder / CLAIMS_FILE)
    judged = read_or_note(faults, "Claims are not shown", read, None)
    if judged is not None:
        # Of the settings judged their own reports tell; of those not here it is told already.
        known = tuple(f"{setting.name}: " for setting in judged.settings)
        gaps = [gap for gap in judged.gaps if not gap.startswith(known)]
        faults += [f"In the claims, setting {g}." for g in gaps if g.partition(": ")[0] in found]
    return judged


def _answers(found: dict[str, Study]) -> Table:
    """Each setting and what it concludes alone."""

    def done(row: tuple[str, Study]) -> str:
        runs = row[1].summary.runs
        return f"{sum(run.state == 'done' for run in runs)} of {len(runs)}"

    columns = [
        Column("setting", lambda row: row[0]),
        Column("domain", lambda row: row[1].summary.domain),
        Column("regime", lambda row: row[1].summary.regime),
        number("runs done", done),
        wide("answer", lambda row: row[1].answer),
    ]
    return table("settings-table", "Settings and their answers", columns, found.items())


def _link(folder: Path, name: str, form: Format) -> Link | None:
    """The setting's own report; None where there is none."""
    if not (SeriesStore(folder).setting(name).folder / f"report.{form}").is_file():
        return None
    return Link(f"settings/{quote(name)}/report.{form}", f"The report of {name}")


# ----- Markdown: every setting in its own words -----


def _index(
    folder: Path, found: dict[str, Study], judged: Judgement | None, faults: list[str]
) -> list[Block]:
    blocks = _in_short(judged) if judged else []
    blocks.append(_answers(found))
    if faults:
        blocks.append(Notice("What is missing", faults, warns=True))
    for place, (name, one) in enumerate(found.items()):
        blocks += _setting_blocks(folder, name, one, f"setting-{place}")
    return blocks


def _in_short(judged: Judgement) -> list[Block]:
    """What the settings say together."""
    verdicts = counted(judged.claims)
    listed = ", ".join(f"{verdicts[one]} {one}" for one in VERDICTS if verdicts[one])
    found: list[Block] = [Prose(sentence) for sentence in judged.sentences]
    if judged.claims:
        found.append(Prose(f"Of {len(judged.claims)} claims over all settings: {listed}."))
    if judged.caveats:
        found.append(Notice("Caveats", judged.caveats))
    return found


def _setting_blocks(folder: Path, name: str, one: Study, anchor: str) -> list[Block]:
    scores = _scores(one.summary, anchor)
    blocks: list[Block] = [Subheading(name, anchor), Prose(one.answer), scores]
    if (SeriesStore(folder).setting(name).folder / FIGURE).is_file():
        text = f"Trade-off of learning and forgetting in {name}."
        blocks.append(Still(f"settings/{quote(name)}/{FIGURE}", text))
    link = _link(folder, name, "md")
    return [*blocks, link] if link else blocks


def _scores(summary: Summary, anchor: str) -> Table:
    """The arms at their best rate and largest budget: leading task and first forgetting."""
    leading = (summary.primary, *summary.forgetting_measures[:1])
    columns = [
        Column("arm", lambda row: row.arm),
        number("rate", lambda row: row.rate),
        number("budget", lambda row: row.facts["budget"]),
        *(score_column(summary, task) for task in measured(summary) if task.name in leading),
    ]
    last = {row.arm: row for row in score_rows(summary)}
    caption = "Arms at their best rate and largest budget"
    return table(f"{anchor}-arms", caption, columns, last.values())
