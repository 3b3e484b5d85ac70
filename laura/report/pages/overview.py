"""The first page: verdict, recommendation, claims in short, the trade-off, what is missing."""

from __future__ import annotations

from laura.report import formats
from laura.report.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    Fold,
    Heading,
    Notice,
    Prose,
    ReportPage,
    Table,
    always,
)
from laura.report.claims import VERDICTS, Choice, Effect, Recommendation
from laura.report.pages.claims import counted, effect_text
from laura.report.reading import Summary
from laura.report.study import Study
from laura.report.tables import lines, measured


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    summary, verdict = study.summary, study.summary.verdict
    found: list[Block] = [Prose(sentence) for sentence in verdict.sentences]
    if verdict.others:
        found.append(Fold("The other arms, one by one", list(map(Prose, verdict.others))))
    if verdict.caveats:
        found.append(Notice("Caveats", verdict.caveats))
    if study.gaps:
        found.append(Notice("What is missing", study.gaps, warns=True))
    if study.recommendation is not None:
        found += _recommended(study.recommendation, summary)
    if study.claims:
        told = counted(study.claims)
        text = "; ".join(f"{verdict} {told[verdict]}" for verdict in VERDICTS if told[verdict])
        clear = [claim for claim in study.claims if claim.verdict != VERDICTS[2]]
        found += [
            Heading("The paper’s claims in short", "claims-in-short"),
            Prose(f"Of {len(study.claims)} statements, this study finds: {text}."),
        ]
        found += [
            Prose(f"{claim.verdict.capitalize()}: {claim.statement} {effect_text(claim.effect)}.")
            for claim in clear
        ]
    return [
        *found,
        Figure("tradeoff"),
        *_unsaid(study),
        Heading("Arms at their best learning rate", "arms"),
        *_arms(summary),
    ]


def _unsaid(study: Study) -> list[Block]:
    """What the analyses had to leave out."""
    if not study.analysis.gaps:
        return []
    return [Fold("What the analyses could not say", [Notice("Gaps", study.analysis.gaps)])]


def _recommended(found: Recommendation, summary: Summary) -> list[Block]:
    heading = Heading("Recommendation", "recommendation")
    asked = f"Asked for: {found.asked}." if found.asked else ""
    if found.chosen is None:
        said = f"{asked} None of the {found.candidates} configurations tried keeps this."
    else:
        said = (
            f"{asked} Take {_named(found.chosen, summary)}. Chosen among {found.candidates} "
            "configurations; the intervals allow for that."
        )
    chosen = [found.chosen] if found.chosen else []
    every = [*chosen, *found.alternatives]
    columns = [
        Column("configuration", wide=True),
        Column("learning", numeric=True),
        Column("forgetting", numeric=True),
        Column("seeds", numeric=True),
        Column("tokens", numeric=True),
        Column("training time", numeric=True),
        Column("peak memory", numeric=True),
        Column("why not", wide=True),
    ]
    rows = [_choice_row(one, summary, one in chosen) for one in every]
    result: list[Block] = [heading, Prose(said.strip())]
    if rows:
        caption = "The recommended configuration and the nearest alternatives"
        result.append(Table("recommended", caption, columns, rows))
    if found.not_tried:
        result.append(Notice("Not tried", found.not_tried))
    return result


def _choice_row(one: Choice, summary: Summary, chosen: bool) -> list[Cell]:
    return [
        Cell(_named(one, summary)),
        _estimate(one.learning),
        _estimate(one.forgetting),
        Cell(str(one.seeds)),
        Cell(formats.count(one.tokens)),
        Cell(formats.duration(one.train_seconds)),
        Cell(formats.memory(one.peak_memory_bytes)),
        Cell("recommended", tone="good") if chosen else Cell(one.why_not),
    ]


def _named(one: Choice, summary: Summary) -> str:
    budget = formats.budget_of(summary, one.budget)
    return f"{one.arm}, learning rate {formats.rate(one.learning_rate)}, {budget}"


def _estimate(effect: Effect) -> Cell:
    if effect.value is None:
        return Cell(formats.ABSENT)
    ends = formats.ends(effect.interval, formats.signed)
    below = f"{ends}, n = {effect.n}" if ends else f"n = {effect.n}"
    return Cell(f"{formats.signed(effect.value)} {effect.unit}".strip(), below)


def _arms(summary: Summary) -> list[Block]:
    tasks = measured(summary)
    columns = [Column("arm")]
    columns += [Column(name, numeric=True) for name in ("rate", "budget", "seeds")]
    for task in tasks:
        side = "learning" if task.name in summary.learning else "forgetting"
        better = "higher" if task.higher_is_better else "lower"
        counted_items = f", n = {task.n}" if task.n else ""
        columns.append(
            Column(
                f"{task.short_title}, {formats.unit(task)}",
                f"{side}, {better} is better{counted_items}",
                numeric=True,
            )
        )
    found = lines(summary, tasks)
    rows = [
        [
            Cell(line.arm),
            Cell(f"{line.rate} *" if line.at_edge else line.rate, title=", ".join(line.runs)),
            Cell(line.budget),
            Cell(line.seeds),
            *(Cell(cell.value, cell.change if line.runs else "") for cell in line.cells),
        ]
        for line in found
    ]
    text = (
        "First line: score; second line: change from the base on the same items (percentage "
        "points for shares). ± is one standard error."
    )
    if any(line.at_edge for line in found):
        text += " * The best rate is the lowest or highest one tried; a better one may lie outside."
    caption = "Scores of the base, and of every arm at its best rate, one line a budget"
    return [Table("arms-table", caption, columns, rows), Prose(text, soft=True)]


PAGE = ReportPage("overview", "Overview", always, blocks)
