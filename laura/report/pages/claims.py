"""The statements of the paper, and what this study says about each."""

from __future__ import annotations

from collections import Counter

from laura.report import formats
from laura.report.blocks import Block, Cell, Column, Fold, Prose, ReportPage, Table, Tone
from laura.report.claims import Claim, Effect, Piece
from laura.report.study import Study

TONES: dict[str, Tone] = {"supported": "good", "contradicted": "bad", "too thin": "soft"}


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if study.claims:
        return ""
    return "the claims were not judged; `laura claims STUDY` does it from the folder alone"


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    return claims_blocks(study.claims)


def claims_blocks(claims: list[Claim]) -> list[Block]:
    """The table of claims, and the evidence for each that has some."""
    found: list[Block] = [
        Prose(
            "A claim is supported where the interval of its effect lies on the claimed side, "
            "contradicted where it lies on the other, and too thin to say where it holds both, "
            "or where seeds, items or arms are missing. None was tuned to agree."
        ),
        _table(claims),
    ]
    if any(not claim.jointly for claim in claims):
        text = "* Not clear any more when all claims that were tested are counted (Holm, 5 %)."
        found.append(Prose(text, soft=True))
    for claim in claims:
        if any(piece.effect.value is not None for piece in claim.evidence):
            found.append(Fold(f"Evidence: {claim.statement}", [_evidence(claim)]))
    return found


def counted(claims: list[Claim]) -> Counter[str]:
    """How many claims have each verdict."""
    return Counter(claim.verdict for claim in claims)


def effect_text(effect: Effect) -> str:
    """An effect in words: `+0.03 share (+0.01 to +0.05, n = 200, 3 seeds)`."""
    if effect.value is None:
        return ""
    ends = formats.ends(effect.interval, formats.signed)
    told = [ends] if ends else []
    told += [f"n = {effect.n}", f"{effect.seeds} seed{'' if effect.seeds == 1 else 's'}"]
    return f"{formats.signed(effect.value)} {effect.unit} ({', '.join(told)})"


def _table(claims: list[Claim]) -> Table:
    columns = [
        Column("claim", wide=True),
        Column("verdict", filter=True),
        Column("effect", "interval", numeric=True),
        Column("n", numeric=True),
        Column("seeds", numeric=True),
        Column("why", wide=True),
        Column("test", wide=True),
        Column("source", wide=True),
    ]
    rows = [
        [
            Cell(claim.statement, title=claim.id),
            Cell(
                claim.verdict + ("" if claim.jointly else " *"),
                tone=TONES.get(claim.verdict, ""),
            ),
            _effect(claim.effect),
            Cell(str(claim.effect.n or formats.ABSENT), order=claim.effect.n),
            Cell(str(claim.effect.seeds or formats.ABSENT), order=claim.effect.seeds),
            Cell(claim.reason),
            Cell(claim.test),
            Cell(claim.source),
        ]
        for claim in claims
    ]
    return Table("claims-table", "Claims and their verdicts", columns, rows, True)


def _effect(effect: Effect) -> Cell:
    if effect.value is None:
        return Cell(formats.ABSENT)
    text = f"{formats.signed(effect.value)} {effect.unit}".strip()
    return Cell(text, formats.ends(effect.interval, formats.signed), order=effect.value)


def _evidence(claim: Claim) -> Table:
    columns = [
        Column("setting"),
        Column("arms"),
        Column("what", wide=True),
        Column("effect", "interval", numeric=True),
        Column("n", numeric=True),
        Column("seeds", numeric=True),
        Column("verdict"),
        Column("why", wide=True),
    ]
    rows = [_piece(piece) for piece in claim.evidence]
    return Table(f"evidence-{claim.id}", f"Evidence: {claim.statement}", columns, rows)


def _piece(piece: Piece) -> list[Cell]:
    return [
        Cell(piece.setting),
        Cell(", ".join(piece.arms) or formats.ABSENT),
        Cell(piece.what),
        _effect(piece.effect),
        Cell(str(piece.effect.n or formats.ABSENT)),
        Cell(str(piece.effect.seeds or formats.ABSENT)),
        Cell(piece.verdict, tone=TONES.get(piece.verdict, "")),
        Cell(piece.reason),
    ]


PAGE = ReportPage("claims", "Claims", missing, blocks)
