"""The first page: what was found, recommendation, claims in short, the trade-off, gaps."""

from __future__ import annotations

from typing import Any

from laura.report import formats
from laura.report.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    Fold,
    Heading,
    Listing,
    Notice,
    Prose,
    ReportPage,
    Table,
    always,
)
from laura.report.pages.claims import EDGE, counted, open_words
from laura.report.study import Study
from laura.report.tables import lines, measured
from laura.results.schema import (
    VERDICTS,
    Candidate,
    Claim,
    Constraint,
    Estimated,
    Judgement,
    Recommendation,
    Summary,
    Tradeoff,
)


def blocks(study: Study) -> list[Block]:
    """What stands on the page, under the answer."""
    summary, judged = study.summary, study.judgement
    found: list[Block] = [] if judged is None else _judged(judged)
    if study.gaps:
        found.append(Notice("What is missing", study.gaps, warns=True))
    if study.recommendation is not None:
        found += _recommended(study.recommendation, summary)
    if judged is not None and judged.claims:
        found += _claims_in_short(judged.claims)
    found.append(Figure("tradeoff"))
    if study.analysis.tradeoff is not None and study.analysis.tradeoff.front:
        found.append(_front(study.analysis.tradeoff, summary))
    return [
        *found,
        *_unsaid(study),
        Heading("Arms at their best learning rate", "arms"),
        *_arms(summary),
    ]


def _judged(judged: Judgement) -> list[Block]:
    found: list[Block] = [Prose(sentence) for sentence in judged.sentences]
    if judged.others:
        found.append(Fold("The other arms, one by one", list(map(Prose, judged.others))))
    if judged.caveats:
        found.append(Notice("Caveats", judged.caveats))
    return found


def _claims_in_short(claims: list[Claim]) -> list[Block]:
    told = counted(claims)
    text = "; ".join(f"{verdict} {told[verdict]}" for verdict in VERDICTS if told[verdict])
    found: list[Block] = [
        Heading("The paper’s claims in short", "claims-in-short"),
        Prose(f"Of {len(claims)} statements, this study finds: {text}."),
    ]
    decided = [claim for claim in claims if claim.verdict != "undecided"]
    found += [Prose(_in_short(claim)) for claim in decided]
    left = [claim for claim in claims if claim.verdict == "undecided"]
    if left:
        items = [(claim.statement, _in_short(claim, named=False)) for claim in left]
        found.append(Fold("Undecided, and what would decide it", [Listing(items)]))
    return found


def _in_short(claim: Claim, named: bool = True) -> str:
    """Verdict, statement, effect, and what limits it."""
    effect = formats.estimated(claim.effect) if claim.effect is not None else ""
    parts = [f"{claim.verdict.capitalize()}: {claim.statement} {effect}".strip()] if named else []
    parts += [] if named else [claim.reason, effect]
    if claim.edge:
        parts.append(f"{EDGE[0].upper()}{EDGE[1:]}")
    parts.append(open_words(claim))
    return " ".join(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in parts if part)


def _front(tradeoff: Tradeoff, summary: Summary) -> Table:
    """The Pareto points by arm, rate and budget."""
    learning, forgetting = (summary.task(n) for n in (tradeoff.learning, tradeoff.forgetting))
    columns = [
        Column("arm"),
        Column("rate", numeric=True),
        Column("budget", numeric=True),
        Column("learnt", f"{learning.short_title}, {formats.change_unit(learning)}", numeric=True),
        Column(
            "forgot", f"{forgetting.short_title}, {formats.change_unit(forgetting)}", numeric=True
        ),
        Column("seeds", numeric=True),
    ]
    rows = [
        [
            Cell(point.arm, title=", ".join(point.runs)),
            Cell(formats.rate(point.learning_rate), order=point.learning_rate),
            Cell(formats.budget_of(summary, point.budget), order=point.budget),
            Cell(formats.amount(point.learning, learning), order=point.learning),
            Cell(formats.amount(point.forgetting, forgetting), order=point.forgetting),
            Cell(str(len(point.seeds)), order=len(point.seeds)),
        ]
        for point in tradeoff.front
    ]
    caption = "The Pareto front: no configuration run learnt more and forgot less than these"
    return Table("front-table", caption, columns, rows, True)


def _unsaid(study: Study) -> list[Block]:
    """What the analyses had to leave out."""
    if not study.analysis.gaps:
        return []
    return [Fold("What the analyses could not say", [Notice("Gaps", study.analysis.gaps)])]


def _recommended(found: Recommendation, summary: Summary) -> list[Block]:
    asked = _asked(found.asked, found.measures)
    said = [f"Asked for: {asked}." if asked else "", found.answer]
    if found.chosen is not None:
        told = f"Chosen among {found.candidates} configurations; the intervals allow for that."
        said.append(told)
    if found.confirm:
        said.append(f"To confirm it: `{found.confirm}`.")
    chosen = [found.chosen] if found.chosen else []
    columns = [
        Column("configuration", wide=True),
        Column("learnt", "interval", numeric=True),
        Column("forgot", "interval", numeric=True),
        Column("seeds", numeric=True),
        Column("tokens", numeric=True),
        Column("training time", numeric=True),
        Column("peak memory", numeric=True),
        Column("why not", wide=True),
    ]
    rows = [
        _choice_row(one, found, summary, one in chosen) for one in [*chosen, *found.alternatives]
    ]
    result: list[Block] = [
        Heading("Recommendation", "recommendation"),
        Prose(" ".join(part for part in said if part)),
    ]
    if rows:
        caption = "The recommended configuration and the nearest alternatives"
        result.append(Table("recommended", caption, columns, rows))
    if found.not_tried:
        result.append(Notice("Not tried", found.not_tried))
    return result


def _asked(asked: Constraint, measures: dict[str, dict[str, Any]]) -> str:
    """What was asked for, in words."""
    told = []
    for words, bound, side in (
        ("forget at most", asked.max_forgetting, "forgetting"),
        ("learn at least", asked.min_learning, "learning"),
    ):
        if bound is not None:
            unit = str(measures.get(side, {}).get("unit", ""))
            told.append(f"{words} {formats.points(bound, unit).removeprefix('+')}")
    if asked.memory_bytes is not None:
        told.append(f"peak memory at most {formats.memory(asked.memory_bytes)}")
    if asked.arm is not None:
        told.append(f"arm {asked.arm}")
    return ", ".join(told)


def _choice_row(
    one: Candidate, found: Recommendation, summary: Summary, chosen: bool
) -> list[Cell]:
    budget = formats.budget_of(summary, one.budget)
    cost = one.cost
    return [
        Cell(f"{one.arm}, learning rate {formats.rate(one.learning_rate)}, {budget}"),
        _estimate(one.learning, one.learnt, found, "learning"),
        _estimate(one.forgetting, one.forgot, found, "forgetting"),
        Cell(str(len(one.seeds))),
        Cell(formats.count(cost.get("tokens"))),
        Cell(formats.duration(cost.get("train_seconds"))),
        Cell(formats.memory(cost.get("peak_memory_bytes"))),
        Cell(found.state, tone="good" if found.state == "recommended" else "soft")
        if chosen
        else Cell(one.why_not),
    ]


def _estimate(effect: Estimated | None, mean: float, found: Recommendation, side: str) -> Cell:
    """A side with its interval; its mean alone where seeds are too few for one."""
    if effect is None:
        unit = str(found.measures.get(side, {}).get("unit", ""))
        return Cell(formats.points(mean, unit).removeprefix("+"))
    shown = formats.points(effect.value, effect.unit).removeprefix("+")
    return Cell(shown, f"{formats.interval(effect)}, n = {effect.n}")


def _arms(summary: Summary) -> list[Block]:
    tasks = measured(summary)
    columns = [Column("arm")]
    columns += [Column(name, numeric=True) for name in ("rate", "budget", "seeds")]
    for task in tasks:
        side = "learnt" if task.name in summary.measure.learning else "forgot"
        counted_items = f", n = {task.n}" if task.n else ""
        columns.append(
            Column(
                f"{task.short_title}, {formats.unit(task)}", f"{side}{counted_items}", numeric=True
            )
        )
    found = lines(summary, tasks)
    rows = [
        [
            Cell(line.arm),
            Cell(f"{line.rate} *" if line.at_edge else line.rate, title=", ".join(line.runs)),
            Cell(line.budget),
            Cell(line.seeds),
            *(Cell(cell.value, cell.moved if line.runs else "") for cell in line.cells),
        ]
        for line in found
    ]
    text = (
        "First line: score; second line: how much was learnt or forgot against the base on the "
        "same items (points for shares). ± is one standard error."
    )
    if any(line.at_edge for line in found):
        text += " * The best rate is the lowest or highest one tried; a better one may lie outside."
    caption = "Scores of the base, and of every arm at its best rate, one line a budget"
    return [Table("arms-table", caption, columns, rows), Prose(text, soft=True)]


PAGE = ReportPage("overview", "Overview", always, blocks)
