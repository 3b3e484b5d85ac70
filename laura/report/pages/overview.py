"""The first page (what was found, recommendation, trade-off, gaps), and the page of claims."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from laura.report import formats
from laura.report.blocks import (
    Block,
    Column,
    Figure,
    Fold,
    Listing,
    Notice,
    Prose,
    Subheading,
    Table,
    TableCell,
    Tone,
    number,
    sorted_by,
    table,
    wide,
)
from laura.report.study import Study
from laura.report.tables import measured, score_column, score_rows, seed_count
from laura.results.schema import (
    VERDICTS,
    Candidate,
    Claim,
    ClaimRow,
    Constraint,
    Estimated,
    Judgement,
    Recommendation,
    Summary,
    Tradeoff,
)

TONES: dict[str, Tone] = {
    "supported": "good",
    "contradicted": "bad",
    "mixed": "bad",
    "suggested": "soft",
    "undecided": "soft",
}
EDGE = "edge: a best rate lies at the end of its list"


def overview(study: Study) -> list[Block]:
    """What stands under the answer."""
    summary, judged, tradeoff = study.summary, study.judgement, study.analysis.tradeoff
    found: list[Block] = [] if judged is None else _judged(judged)
    if study.gaps:
        found.append(Notice("What is missing", study.gaps, warns=True))
    if study.recommendation is not None:
        found += _recommended(study.recommendation, summary)
    if judged is not None and judged.claims:
        found += _claims_in_short(judged.claims)
    found.append(Figure("tradeoff"))
    if tradeoff is not None and tradeoff.front:
        found.append(_front(tradeoff, summary))
    if study.analysis.gaps:
        unsaid = Notice("Gaps", study.analysis.gaps)
        found.append(Fold("What the analyses could not say", [unsaid]))
    return [*found, Subheading("Arms at their best learning rate", "arms"), *_arms(summary)]


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
        Subheading("The paper’s claims in short", "claims-in-short"),
        Prose(f"Of {len(claims)} statements, this study finds: {text}."),
    ]
    found += [Prose(_in_short(claim)) for claim in claims if claim.verdict != "undecided"]
    left = [claim for claim in claims if claim.verdict == "undecided"]
    if left:
        items = [(claim.statement, _in_short(claim, named=False)) for claim in left]
        found.append(Fold("Undecided, and what would decide it", [Listing(items)]))
    return found


def _in_short(claim: Claim, named: bool = True) -> str:
    """Verdict, statement, effect, and what limits it."""
    effect = formats.estimated(claim.effect) if claim.effect is not None else ""
    parts = [f"{claim.verdict.capitalize()}: {claim.statement} {effect}".strip()]
    if not named:
        parts = [claim.reason, effect]
    parts += [EDGE if claim.edge else "", open_words(claim)]
    return " ".join(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in parts if part)


def _front(tradeoff: Tradeoff, summary: Summary) -> Table:
    """The Pareto points by arm, rate and budget."""
    up, right = (summary.task(name) for name in (tradeoff.learning, tradeoff.forgetting))
    budget_of = partial(formats.budget_of, summary)
    columns = [
        Column("arm", lambda one: TableCell(one.arm, title=", ".join(one.runs))),
        number("rate", lambda one: sorted_by(one.learning_rate, formats.rate)),
        number("budget", lambda one: sorted_by(one.budget, budget_of)),
        number("learnt", lambda one: sorted_by(one.learning, lambda v: formats.amount(v, up)),
               f"{up.short_title}, {formats.change_unit(up)}"),
        number("forgot", lambda one: sorted_by(one.forgetting, lambda v: formats.amount(v, right)),
               f"{right.short_title}, {formats.change_unit(right)}"),
        number("seeds", lambda one: sorted_by(len(one.seeds))),
    ]  # fmt: skip
    caption = "The Pareto front: no configuration run learnt more and forgot less than these"
    return table("front-table", caption, columns, tradeoff.front, sorts=True)


def _arms(summary: Summary) -> list[Block]:
    rows = score_rows(summary)
    columns = [
        Column("arm", lambda row: row.arm),
        number("rate", lambda row: TableCell(row.marked_rate, title=row.runs)),
        number("budget", lambda row: row.facts["budget"]),
        number("seeds", seed_count),
        *(score_column(summary, task, counted=True) for task in measured(summary)),
    ]
    text = (
        "First line: score; second line: how much was learnt or forgot against the base on the "
        "same items (points for shares). ± is one standard error."
    )
    if any(row.at_edge for row in rows):
        text += " * The best rate is the lowest or highest one tried; a better one may lie outside."
    caption = "Scores of the base, and of every arm at its best rate, one line a budget"
    return [table("arms-table", caption, columns, rows), Prose(text, soft=True)]


# ----- the recommendation -----


def _recommended(found: Recommendation, summary: Summary) -> list[Block]:
    asked = _asked(found.asked, found.measures)
    said = [f"Asked for: {asked}." if asked else "", found.answer]
    if found.chosen is not None:
        said.append(
            f"Chosen among {found.candidates} configurations; the intervals allow for that."
        )
    if found.confirm:
        said.append(f"To confirm it: `{found.confirm}`.")
    result: list[Block] = [
        Subheading("Recommendation", "recommendation"),
        Prose(" ".join(part for part in said if part)),
    ]
    rows = [*([found.chosen] if found.chosen else []), *found.alternatives]
    if rows:
        result.append(_choices(found, rows, summary))
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


def _choices(found: Recommendation, rows: list[Candidate], summary: Summary) -> Table:
    def what(one: Candidate) -> str:
        rate, budget = formats.rate(one.learning_rate), formats.budget_of(summary, one.budget)
        return f"{one.arm}, learning rate {rate}, {budget}"

    def side(effect: Estimated | None, mean: float, name: str) -> TableCell:
        """A side with its interval; its mean alone where seeds are too few for one."""
        if effect is None:
            unit = str(found.measures.get(name, {}).get("unit", ""))
            return TableCell(formats.points(mean, unit).removeprefix("+"))
        shown = formats.points(effect.value, effect.unit).removeprefix("+")
        return TableCell(shown, f"{formats.interval(effect)}, n = {effect.n}")

    def why_not(one: Candidate) -> TableCell:
        good = found.state == "recommended"
        chosen = TableCell(found.state, tone="good" if good else "soft")
        return chosen if one is found.chosen else TableCell(one.why_not)

    columns = [
        wide("configuration", what),
        number("learnt", lambda one: side(one.learning, one.learnt, "learning"), "interval"),
        number("forgot", lambda one: side(one.forgetting, one.forgot, "forgetting"), "interval"),
        number("seeds", lambda one: str(len(one.seeds))),
        number("tokens", lambda one: formats.count(one.cost.get("tokens"))),
        number("training time", lambda one: formats.duration(one.cost.get("train_seconds"))),
        number("peak memory", lambda one: formats.memory(one.cost.get("peak_memory_bytes"))),
        wide("why not", why_not),
    ]
    caption = "The recommended configuration and the nearest alternatives"
    return table("recommended", caption, columns, rows)


# ----- the claims -----


def claims(study: Study) -> list[Block] | str:
    """The statements of the paper, and what this study says about each."""
    if study.judgement is None or not study.judgement.claims:
        return "the claims were not judged; `laura claims STUDY` does it from the folder alone"
    return claims_blocks(study.judgement.claims)


def claims_blocks(claims: list[Claim]) -> list[Block]:
    """The table of claims, and the evidence for each that has some."""
    text = (
        "Supported: the 95 % interval lies inside what the statement says. Contradicted: "
        "inside its opposite. Mixed: established in some settings, its opposite in others. "
        "Suggested: what was run can hint at it and no more. Undecided: the rest, with what "
        "would decide it. The verdict counts all statements that were tested (Holm, 5 %); "
        "what each says alone stands beside it. None was tuned to agree."
    )
    columns = [
        wide("claim", lambda claim: TableCell(claim.statement, title=claim.id)),
        Column("verdict", _verdict, "all counted", filter=True),
        Column("alone", lambda claim: claim.alone),
        *effect_columns(),
        wide("why", lambda claim: claim.reason),
        wide("could not say, would decide", open_words),
        wide("test", lambda claim: claim.test),
        wide("source", lambda claim: claim.source),
    ]
    every = table("claims-table", "Claims and their verdicts", columns, claims, sorts=True)
    return [Prose(text), every, *(
        Fold(f"Evidence: {claim.statement}", [_evidence(claim)])
        for claim in claims if any(row.effect is not None for row in claim.evidence)
    )]  # fmt: skip


def counted(claims: list[Claim]) -> Counter[str]:
    """How many claims have each joint verdict."""
    return Counter(claim.verdict for claim in claims)


def open_words(claim: Claim) -> str:
    """Why a claim's design could not have spoken, and what would decide it."""
    told = []
    missing = "; ".join(claim.missing)
    if missing:
        # Where nothing was tested the reason is what is missing, and is not told twice.
        told.append(
            "this design could not say" + ("" if missing == claim.reason else f": {missing}")
        )
    if claim.would_decide:
        told.append(f"would decide: {claim.would_decide}")
    return ". ".join(one[0].upper() + one[1:].rstrip(".") for one in told)


def effect_cell(effect: Estimated | None) -> TableCell:
    """An estimate with its interval."""
    if effect is None:
        return TableCell(formats.ABSENT)
    return sorted_by(
        effect.value, lambda value: formats.points(value, effect.unit), formats.interval(effect)
    )


def effect_columns() -> list[Column]:
    """A row's estimate with its interval, its items and its seeds."""
    return [
        number("effect", lambda row: effect_cell(row.effect), "interval"),
        number("n", lambda row: sorted_by(row.effect and row.effect.n)),
        number("seeds", lambda row: sorted_by(row.effect and row.effect.seeds)),
    ]


def _verdict(row: Claim | ClaimRow) -> TableCell:
    return TableCell(row.verdict, "edge" if row.edge else "", tone=TONES[row.verdict])


def _evidence(claim: Claim) -> Table:
    columns = [
        Column("setting", lambda row: row.setting),
        Column("arms", lambda row: ", ".join(row.arms) or formats.ABSENT),
        wide("what", lambda row: row.what),
        *effect_columns(),
        Column("verdict", _verdict),
        Column("decides", lambda row: "yes" if row.decides else ""),
        wide("why", lambda row: row.reason),
    ]
    caption = f"Evidence: {claim.statement}"
    return table(f"evidence-{claim.id}", caption, columns, claim.evidence)
