"""The statements of the paper, and what this study says about each."""

from __future__ import annotations

from collections import Counter

from laura.report import formats
from laura.report.blocks import Block, Cell, Column, Fold, Prose, ReportPage, Table, Tone
from laura.report.study import Study
from laura.results.schema import Claim, ClaimRow, Estimated

TONES: dict[str, Tone] = {
    "supported": "good",
    "contradicted": "bad",
    "mixed": "bad",
    "suggested": "soft",
    "undecided": "soft",
}
EDGE = "edge: a best rate lies at the end of its list"


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if study.judgement is not None and study.judgement.claims:
        return ""
    return "the claims were not judged; `laura claims STUDY` does it from the folder alone"


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    return claims_blocks(study.judgement.claims if study.judgement else [])


def claims_blocks(claims: list[Claim]) -> list[Block]:
    """The table of claims, and the evidence for each that has some."""
    found: list[Block] = [
        Prose(
            "Supported: the 95 % interval lies inside what the statement says. Contradicted: "
            "inside its opposite. Mixed: established in some settings, its opposite in others. "
            "Suggested: what was run can hint at it and no more. Undecided: the rest, with what "
            "would decide it. The verdict counts all statements that were tested (Holm, 5 %); "
            "what each says alone stands beside it. None was tuned to agree."
        ),
        _table(claims),
    ]
    for claim in claims:
        if any(row.effect is not None for row in claim.evidence):
            found.append(Fold(f"Evidence: {claim.statement}", [_evidence(claim)]))
    return found


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


def _table(claims: list[Claim]) -> Table:
    columns = [
        Column("claim", wide=True),
        Column("verdict", "all counted", filter=True),
        Column("alone"),
        Column("effect", "interval", numeric=True),
        Column("n", numeric=True),
        Column("seeds", numeric=True),
        Column("why", wide=True),
        Column("could not say, would decide", wide=True),
        Column("test", wide=True),
        Column("source", wide=True),
    ]
    rows = [
        [
            Cell(claim.statement, title=claim.id),
            Cell(claim.verdict, "edge" if claim.edge else "", tone=TONES[claim.verdict]),
            Cell(claim.alone),
            *effect_cells(claim.effect),
            Cell(claim.reason),
            Cell(open_words(claim)),
            Cell(claim.test),
            Cell(claim.source),
        ]
        for claim in claims
    ]
    return Table("claims-table", "Claims and their verdicts", columns, rows, True)


def effect_cells(effect: Estimated | None) -> list[Cell]:
    """An estimate with its interval, its items and its seeds."""
    if effect is None:
        return [Cell(formats.ABSENT)] * 3
    text = formats.points(effect.value, effect.unit)
    return [
        Cell(text, formats.interval(effect), order=effect.value),
        Cell(str(effect.n), order=effect.n),
        Cell(str(effect.seeds), order=effect.seeds),
    ]


def _evidence(claim: Claim) -> Table:
    columns = [
        Column("setting"),
        Column("arms"),
        Column("what", wide=True),
        Column("effect", "interval", numeric=True),
        Column("n", numeric=True),
        Column("seeds", numeric=True),
        Column("verdict"),
        Column("decides"),
        Column("why", wide=True),
    ]
    rows = [_evidence_row(row) for row in claim.evidence]
    return Table(f"evidence-{claim.id}", f"Evidence: {claim.statement}", columns, rows)


def _evidence_row(row: ClaimRow) -> list[Cell]:
    return [
        Cell(row.setting),
        Cell(", ".join(row.arms) or formats.ABSENT),
        Cell(row.what),
        *effect_cells(row.effect),
        Cell(row.verdict, "edge" if row.edge else "", tone=TONES[row.verdict]),
        Cell("yes" if row.decides else ""),
        Cell(row.reason),
    ]


PAGE = ReportPage("claims", "Claims", missing, blocks)
