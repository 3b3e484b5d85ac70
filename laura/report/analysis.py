"""analysis.json as typed values: what the scores, samples and weights say together.

Reading is loose like that of summary.json: parts may be missing, a wrong kind is an
error that names the field. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from laura.errors import StoreError
from laura.report.fields import Fields
from laura.results.statistics import Estimate
from laura.store import read_json

Interval: TypeAlias = tuple[float | None, float | None]
"""Both ends of an interval; None where it is open."""

FORMAT = 1
ANALYSIS_FILE = "analysis.json"
COUNTS = ("distinct", "distinct_passed", "distinct_failed", "self_bleu", "answer_entropy")
ENERGY = "90"  # per cent of the sum of squares that a rank keeps (Biderman et al. 2024, section 5)


@dataclass(frozen=True)
class Matched:
    """Forgetting of two arms at the same learning.

    Attributes:
        arms: The two.
        level: What was learnt beyond the base, in the task's unit.
        forgetting: How much worse the source scores became, of each.
        difference: The first's minus the second's, with its 95 % `interval`.
        seeds, n: How many seeds and items stand behind it.
        method: How the curves were made and read, in words.
    """

    arms: tuple[str, str]
    level: float
    forgetting: tuple[float, float]
    difference: float
    interval: Interval | None
    seeds: int
    n: int
    method: str


@dataclass(frozen=True)
class Area:
    """Area under an arm's trade-off curve, a number to compare arms of one study by."""

    arm: str
    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Tradeoff:
    """Learning against forgetting; `front` holds (run, budget) of what nothing else beats."""

    learning: str
    forgetting: str
    front: list[tuple[str, float]]
    areas: list[Area]
    matched: list[Matched]


@dataclass(frozen=True)
class Needed:
    """Tokens or epochs that an arm needs to reach a level; None where it never does."""

    arm: str
    task: str
    level: float
    unit: str
    needed: float | None
    at_most: bool
    interval: Interval | None


@dataclass(frozen=True)
class Sampled:
    """One model's many samples of a task: whose they are, and what was counted.

    Attributes:
        extra: Name of the recipe's extra that drew them.
        arm: None for the base.
        budget: Training so far; None for the base.
        samples: Samples of each prompt.
        counts: Name of a count (`distinct`, `self_bleu` ...) to its estimate.
        curve: (k, pass@k) with k rising; empty where it was not asked for.
    """

    extra: str
    task: str
    arm: str | None
    seed: int | None
    learning_rate: float | None
    budget: float | None
    samples: int
    temperature: float | None
    counts: dict[str, Estimate] = field(default_factory=dict)
    curve: list[tuple[float, Estimate]] = field(default_factory=list)


@dataclass(frozen=True)
class Matrix:
    """One matrix of a tuned model and its update.

    Attributes:
        rank: Directions that keep 90 % of the update's sum of squares.
        noise_rank: The same of iid noise of this shape.
        relative_frobenius: Norm of the update as a share of the base matrix's.
        intruders: Intruder dimensions; None where they were not counted.
        values: Kind (`base`, `tuned`, `update`) to falling singular values, where kept.
    """

    name: str
    layer: int
    module: str
    shape: tuple[int, int]
    rank: float
    noise_rank: float | None
    effective_rank: float | None
    relative_frobenius: float | None
    intruders: float | None
    values: dict[str, list[float]]


@dataclass(frozen=True)
class Spectra:
    """The matrices of one checkpoint."""

    run: str
    arm: str
    seed: int
    learning_rate: float
    budget: float
    matrices: list[Matrix]
    warnings: list[str]


@dataclass(frozen=True)
class Overlap:
    """Shared share of the leading subspaces of two runs' updates of one matrix."""

    runs: tuple[str, str]
    name: str
    k: int
    overlap: float
    noise_overlap: float | None


@dataclass(frozen=True)
class Difference:
    """One model's count minus another's, paired by prompt; None among `arms` is the base."""

    extra: str
    arms: tuple[str | None, str | None]
    budget: float
    measure: str
    difference: float
    stderr: float
    n: int
    seeds: int


@dataclass(frozen=True)
class DriftFit:
    """How much of the forgetting a divergence from the base explains."""

    measure: str
    forgetting: str
    r_squared: float
    n: int


@dataclass(frozen=True)
class Spikes:
    """Loss spikes of one run: steps that stand far above those before them.

    Attributes:
        count: How many, each a stretch of neighbouring steps.
        worst: Largest rise above the median before it (nats); None without a spike.
        looked_at: Steps that the run took, branches counted once.
    """

    run: str
    arm: str
    learning_rate: float
    seed: int
    count: int
    worst: float | None
    looked_at: int


@dataclass(frozen=True)
class Analysis:
    """The whole of analysis.json; every part may be empty."""

    tradeoff: Tradeoff | None = None
    efficiency: list[Needed] = field(default_factory=list)
    diversity: list[Sampled] = field(default_factory=list)
    diversity_differences: list[Difference] = field(default_factory=list)
    pass_at_k: list[Sampled] = field(default_factory=list)
    drift_fits: list[DriftFit] = field(default_factory=list)
    spikes: list[Spikes] = field(default_factory=list)
    spectra: list[Spectra] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


def read_analysis(study: Path) -> Analysis:
    """Read STUDY/analysis.json; an empty one where there is none.

    Raises:
        StoreError: it is damaged, or of another format.
    """
    file = study / ANALYSIS_FILE
    if not file.is_file():
        return Analysis()
    fields = Fields(read_json(file), "", str(file))
    if fields.number("format") != FORMAT:
        raise StoreError(
            f"{file} has format {fields.number('format'):g}, this Laura reads {FORMAT}; give "
            "`laura compare` again"
        )
    return Analysis(
        tradeoff=_tradeoff(fields.nested("tradeoff")) if fields.has("tradeoff") else None,
        efficiency=[_needed(row) for row in fields.nested_list("efficiency")],
        diversity=[_sampled(row) for row in fields.nested_list("diversity")],
        diversity_differences=[
            _difference(row) for row in fields.nested_list("diversity_differences")
        ],
        pass_at_k=[_sampled(row) for row in fields.nested_list("pass_at_k")],
        drift_fits=[_drift_fit(row) for row in fields.nested_list("drift_fit")],
        spikes=[_spikes(row) for row in fields.nested_list("spikes")],
        spectra=[_spectra(row) for row in fields.nested_list("spectra")],
        # Where an update is zero it has no directions to compare.
        overlaps=[_overlap(row) for row in fields.nested_list("subspaces") if row.has("overlap")],
        gaps=fields.texts("gaps"),
    )


def count(fields: Fields, name: str) -> int:
    """A whole number; 0 where it is absent."""
    return int(fields.optional_number(name) or 0)


def _tradeoff(fields: Fields) -> Tradeoff:
    areas = fields.nested("area")
    return Tradeoff(
        fields.text("learning"),
        fields.text("forgetting"),
        [(row.text("run"), row.number("budget")) for row in fields.nested_list("front")],
        [
            Area(arm, areas.nested(arm).number("value"), areas.nested(arm).interval())
            for arm in areas.names
        ],
        [_matched(row) for row in fields.nested_list("matched")],
    )


def _matched(fields: Fields) -> Matched:
    (first, second), forgot = fields.texts("arms"), fields.numbers("forgetting")
    return Matched(
        (first, second),
        fields.number("level"),
        (forgot[0], forgot[1]),
        fields.number("difference"),
        fields.interval(),
        count(fields, "seeds"),
        count(fields, "n"),
        fields.optional_text("method"),
    )


def _needed(fields: Fields) -> Needed:
    return Needed(
        fields.text("arm"),
        fields.text("task"),
        fields.number("level"),
        fields.optional_text("unit", "tokens"),
        fields.optional_number("needed"),
        fields.flag("at_most"),
        fields.interval(),
    )


def _sampled(fields: Fields) -> Sampled:
    counts = {
        name: Estimate(own.number("value"), own.optional_number("stderr") or 0.0, count(own, "n"))
        for name in COUNTS
        if fields.has(name)
        for own in [fields.nested(name)]
    }
    ks, values, errors = (fields.numbers(name) for name in ("k", "value", "stderr"))
    n, seed = count(fields, "n"), fields.optional_number("seed")
    return Sampled(
        fields.optional_text("extra", "samples"),
        fields.optional_text("task"),
        fields.optional_text("arm") or None,
        None if seed is None else int(seed),
        fields.optional_number("learning_rate"),
        fields.optional_number("budget"),
        count(fields, "samples"),
        fields.optional_number("temperature"),
        counts,
        [(k, Estimate(v, e, n)) for k, v, e in zip(ks, values, errors, strict=False)],
    )


def _spectra(fields: Fields) -> Spectra:
    return Spectra(
        fields.text("run"),
        fields.text("arm"),
        count(fields, "seed"),
        fields.number("learning_rate"),
        fields.number("budget"),
        [_matrix(row) for row in fields.nested_list("matrices")],
        fields.texts("warnings"),
    )


def _matrix(fields: Fields) -> Matrix:
    rows, columns = fields.numbers("shape")
    kinds = {"base": fields.nested("base"), "tuned": fields.nested("tuned"), "update": fields}
    return Matrix(
        fields.text("name"),
        int(fields.number("layer")),
        fields.text("module"),
        (int(rows), int(columns)),
        fields.nested("rank").number(ENERGY),
        fields.nested("noise_rank").optional_number(ENERGY),
        fields.optional_number("effective_rank"),
        fields.optional_number("relative_frobenius"),
        fields.optional_number("intruders"),
        {kind: own.numbers("values") for kind, own in kinds.items() if own.has("values")},
    )


def _overlap(fields: Fields) -> Overlap:
    first, second = fields.texts("runs")
    return Overlap(
        (first, second),
        fields.text("name"),
        count(fields, "k"),
        fields.number("overlap"),
        fields.optional_number("noise_overlap"),
    )


def _difference(fields: Fields) -> Difference:
    first, second = (name if isinstance(name, str) else None for name in fields.sequence("arms"))
    return Difference(
        fields.text("extra"),
        (first, second),
        fields.number("budget"),
        fields.text("measure"),
        fields.number("difference"),
        fields.optional_number("stderr") or 0.0,
        count(fields, "n"),
        count(fields, "seeds"),
    )


def _drift_fit(fields: Fields) -> DriftFit:
    return DriftFit(
        fields.text("measure"),
        fields.text("forgetting"),
        fields.number("r_squared"),
        count(fields, "n"),
    )


def _spikes(fields: Fields) -> Spikes:
    return Spikes(
        fields.text("run"),
        fields.text("arm"),
        fields.number("learning_rate"),
        count(fields, "seed"),
        count(fields, "count"),
        fields.optional_number("worst"),
        count(fields, "n"),
    )
