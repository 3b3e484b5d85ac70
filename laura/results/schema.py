"""Every file of a finished study, one class each: what writes a file reads it too. No torch.

    summary.json         Summary         what was run and measured
    analysis.json        Analysis        what scores, samples and weights say together
    claims.json          Judgement       what is concluded, in numbers and in words
    cost.json            Costs           what it took on this machine
    recommendation.json  Recommendation  which configuration to take

Numbers are finite; forgetting is above 0 where something was forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from laura.errors import StoreError, UsageError
from laura.store import read_json, write_json

FORMAT = 2
MEAN = "mean"  # of the accuracies among the forgetting tasks
CLAIMS_FILE, ANALYSIS_FILE, COST_FILE = "claims.json", "analysis.json", "cost.json"
RECOMMENDATION_FILE, SUMMARY_FILE = "recommendation.json", "summary.json"

Ends = tuple[FiniteFloat | None, FiniteFloat | None]
"""Both ends of an interval; None where it is open."""

Verdict = Literal["supported", "contradicted", "mixed", "undecided", "suggested"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "mixed", "suggested", "undecided")


class File(BaseModel):
    """A part of a study's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ----- claims.json -----


class Estimated(File):
    """A number with the interval that holds its errors over seeds and items."""

    value: FiniteFloat
    unit: str
    stderr: Annotated[FiniteFloat, Field(ge=0)]
    interval: tuple[FiniteFloat, FiniteFloat]
    level: FiniteFloat = 0.95
    n: int = Field(ge=0)
    seeds: int = Field(ge=0)


class ClaimRow(File):
    """What one setting says about a claim; `reason` where it says nothing.

    Rows that do not decide stand beside the statement and never bear on its verdict.
    """

    setting: str
    arms: list[str] = []
    what: str = ""
    effect: Estimated | None = None
    verdict: Verdict = "undecided"
    decides: bool = False
    edge: bool = False
    reason: str = ""


class Claim(File):
    """A statement and what the data say about it.

    `verdict` is the joint one, after Holm over all statements tested; `alone` is what the
    interval of this statement says by itself. `missing` says why this design could not
    have given either answer; it is empty where it could. `would_decide` says what would.
    """

    id: str
    statement: str
    source: str
    question: Literal["tuned", "equal learning", "updates", "search"]
    test: str
    verdict: Verdict
    alone: Verdict
    reason: str
    missing: list[str] = []
    would_decide: str = ""
    effect: Estimated | None = None
    edge: bool = False
    p: FiniteFloat | None = None
    joint_p: FiniteFloat | None = None
    evidence: list[ClaimRow] = []


class Comparison(File):
    """Two arms beside one another: tuned, and at equal learning.

    `learning` and `forgetting` are the first arm's minus the second's, each at its own best
    rate; `equal_learning` is the difference of forgetting averaged over `levels`, the range
    of learning that both reach. None where there is too little, and `reason` says what.
    """

    arms: tuple[str, str]
    budget: FiniteFloat | None = None
    learning: Estimated | None = None
    forgetting: Estimated | None = None
    equal_learning: Estimated | None = None
    levels: tuple[FiniteFloat, FiniteFloat] | None = None
    edge: bool = False
    reason: str = ""


class JudgedSetting(File):
    """A study that was judged."""

    name: str
    domain: str
    regime: str
    arms: list[str]


class Judgement(File):
    """What a study or a series concludes; every output takes its numbers and words from here.

    `answer` is one sentence of at most 25 words with what to do. `sentences` tell of the two
    arms that stand for the methods, `others` of the rest.
    """

    format: Literal[2] = 2
    answer: str
    sentences: list[str] = []
    others: list[str] = []
    caveats: list[str] = []
    comparisons: list[Comparison] = []
    level: FiniteFloat = 0.95
    tested: int = 0
    settings: list[JudgedSetting] = []
    claims: list[Claim] = []
    gaps: list[str] = []


# ----- recommendation.json -----


class Constraint(File):
    """What was asked for; units are those of the measures (0.02 of a share is 2 points)."""

    max_forgetting: FiniteFloat | None = None
    min_learning: FiniteFloat | None = None
    memory_bytes: int | None = None
    arm: str | None = None


class Candidate(File):
    """A configuration, an arm at a rate and a budget, with what is known of it.

    `confirmed` says that its numbers come from seeds that had no part in choosing it.
    """

    arm: str
    method: str
    settings: dict[str, Any] = {}
    learning_rate: FiniteFloat
    budget: FiniteFloat
    seeds: list[int]
    runs: list[str]
    confirmed: bool
    learning: Estimated | None
    forgetting: Estimated | None
    learnt: FiniteFloat
    forgot: FiniteFloat
    cost: dict[str, Any] = {}
    why_not: str = ""


class Recommendation(File):
    """Which configuration to take.

    `state`: `recommended` where its interval keeps what was asked on seeds that had no part
    in the choice, `suggested` where only its mean does (`confirm` is the command that would
    settle it), `not met` where nothing measured keeps it.
    """

    format: Literal[2] = 2
    answer: str
    study: str
    asked: Constraint
    state: Literal["recommended", "suggested", "not met"]
    measures: dict[str, dict[str, Any]]
    candidates: int
    level: FiniteFloat
    chosen: Candidate | None = None
    alternatives: list[Candidate] = []
    confirm: str = ""
    not_tried: list[str] = []
    recipe: str | None = None
    adapter: str | None = None


F = TypeVar("F", bound=File)


def read_file(kind: type[F], path: Path) -> F:
    """A study's file, checked.

    Raises:
        UsageError: it is of an older format; the message says what makes it anew.
        StoreError: it is missing or damaged; every fault is named.
    """
    value = read_json(path)
    if (
        isinstance(value, dict)
        and isinstance(value.get("format"), int)
        and value["format"] < FORMAT
    ):
        raise UsageError(
            f"{path} is of an older format; `laura compare {path.parent / 'recipe.yaml'} --out "
            f"{path.parent}` makes it anew (runs and measurements are kept)"
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}"
            for one in error.errors(include_url=False)
        )
        raise StoreError(
            f"{path} is damaged: {faults}. Delete it and give the command that wrote it again"
        ) from error


def write_file(path: Path, value: File) -> None:
    """Write a study's file whole or not at all.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    write_json(path, value.model_dump(mode="json"))
