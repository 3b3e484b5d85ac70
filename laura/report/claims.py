"""claims.json and recommendation.json as typed values: what a study says in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from laura.errors import StoreError
from laura.report import formats
from laura.report.analysis import Interval, count
from laura.report.fields import Fields
from laura.store import read_json

FORMAT = 1
CLAIMS_FILE, RECOMMENDATION_FILE = "claims.json", "recommendation.json"
VERDICTS = ("supported", "contradicted", "too thin")


@dataclass(frozen=True)
class Effect:
    """A number with its interval, and how much stands behind it."""

    value: float | None
    unit: str
    interval: Interval | None
    n: int
    seeds: int


@dataclass(frozen=True)
class Piece:
    """What one setting says about a claim; `reason` where it says nothing."""

    setting: str
    arms: list[str]
    what: str
    effect: Effect
    verdict: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and what the data say about it.

    Attributes:
        verdict: `supported`, `contradicted` or `too thin`.
        jointly: Whether the verdict still stands when all claims tested are counted.
    """

    id: str
    statement: str
    source: str
    verdict: str
    reason: str
    effect: Effect
    level: float
    test: str
    jointly: bool
    evidence: list[Piece]


@dataclass(frozen=True)
class Choice:
    """A configuration with what it is expected to do."""

    arm: str
    learning_rate: float
    budget: float
    seeds: int
    learning: Effect
    forgetting: Effect
    tokens: float | None
    train_seconds: float | None
    peak_memory_bytes: float | None
    why_not: str


@dataclass(frozen=True)
class Recommendation:
    """The whole of recommendation.json; `chosen` is None where nothing kept the bounds."""

    asked: str
    chosen: Choice | None
    alternatives: list[Choice]
    candidates: int
    not_tried: list[str]


def read_claims(folder: Path) -> list[Claim]:
    """Read claims.json of a study or a series; empty where there is none.

    Raises:
        StoreError: it is damaged, or of another format.
    """
    file = folder / CLAIMS_FILE
    if not file.is_file():
        return []
    return [_claim(row) for row in _opened(file).nested_list("claims")]


def read_gaps(folder: Path) -> list[str]:
    """What claims.json says of settings that it could not judge; empty where there is none.

    Raises:
        StoreError: as `read_claims`.
    """
    file = folder / CLAIMS_FILE
    fields = _opened(file) if file.is_file() else None
    if fields is None or not (fields.has("gaps") and fields.has("settings")):
        return []
    judged = tuple(f"{row.text('name')}: " for row in fields.nested_list("settings"))
    return [gap for gap in fields.texts("gaps") if not gap.startswith(judged)]


def read_recommendation(study: Path) -> Recommendation | None:
    """Read STUDY/recommendation.json; None where nothing was asked.

    Raises:
        StoreError: it is damaged, or of another format.
    """
    file = study / RECOMMENDATION_FILE
    if not file.is_file():
        return None
    fields = _opened(file)
    units = fields.nested("measures")
    return Recommendation(
        _asked(fields.nested("wish")),
        _choice(fields.nested("chosen"), units) if fields.has("chosen") else None,
        [_choice(row, units) for row in fields.nested_list("alternatives")],
        count(fields, "candidates"),
        fields.texts("not_tried"),
    )


def _opened(file: Path) -> Fields:
    fields = Fields(read_json(file), "", str(file))
    if fields.number("format") != FORMAT:
        raise StoreError(
            f"{file} has format {fields.number('format'):g}, this Laura reads {FORMAT}; delete "
            "it and give the command that made it again"
        )
    return fields


def _claim(fields: Fields) -> Claim:
    verdict = fields.text("verdict")
    joint = fields.nested("holm").optional_text("verdict", verdict)
    return Claim(
        fields.text("id"),
        fields.text("statement"),
        fields.optional_text("source"),
        verdict,
        fields.optional_text("reason"),
        _effect(fields, "effect"),
        fields.optional_number("level") or 0.95,
        fields.optional_text("test"),
        joint == verdict,
        [_piece(row) for row in fields.nested_list("evidence")],
    )


def _piece(fields: Fields) -> Piece:
    return Piece(
        fields.optional_text("setting"),
        fields.texts("arms"),
        fields.optional_text("what"),
        _effect(fields, "value"),
        fields.optional_text("verdict"),
        fields.optional_text("reason"),
    )


def _effect(fields: Fields, name: str) -> Effect:
    return Effect(
        fields.optional_number(name),
        fields.optional_text("unit"),
        fields.interval(),
        count(fields, "n"),
        count(fields, "seeds"),
    )


def _choice(fields: Fields, measures: Fields) -> Choice:
    learning, forgetting = (
        Effect(
            own.number("value"),
            measures.nested(side).optional_text("unit"),
            own.interval(),
            count(own, "n"),
            count(own, "seeds"),
        )
        for side in ("learning", "forgetting")
        for own in [fields.nested(side)]
    )
    cost = fields.nested("cost")
    return Choice(
        fields.text("arm"),
        fields.number("learning_rate"),
        fields.number("budget"),
        len(fields.sequence("seeds")),
        learning,
        forgetting,
        cost.optional_number("tokens"),
        cost.optional_number("train_seconds"),
        cost.optional_number("peak_memory_bytes"),
        fields.optional_text("why_not"),
    )


def _asked(wish: Fields) -> str:
    """What was asked for, in words."""
    told = []
    if wish.has("max_forgetting"):
        told.append(f"forgetting at most {wish.number('max_forgetting'):g}")
    if wish.has("min_learning"):
        told.append(f"learning at least {wish.number('min_learning'):g}")
    if wish.has("memory_bytes"):
        told.append(f"peak memory at most {formats.memory(wish.number('memory_bytes'))}")
    return ", ".join(told)
