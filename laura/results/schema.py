"""Every file of a finished study, one class each: what writes a file reads it too. No torch.

    summary.json         Summary         what was run and measured
    analysis.json        Analysis        what scores, samples and weights say together
    claims.json          Judgement       what is concluded, in numbers and in words
    cost.json            Costs           what it took on this machine
    recommendation.json  Recommendation  which configuration to take
    laura.json           Record          what is known of weights, beside their files

Numbers are finite. A *change* is tuned minus base, in the task's own unit and direction;
*forgetting* is above 0 where something was forgotten.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from laura.results.errors import StoreError, UsageError
from laura.results.inputs import MOST_CONFIG_BYTES, read_bounded
from laura.results.statistics import LEVEL, Contrast, Estimate
from laura.results.store import disk_faults, read_json, write_json, write_text

FORMAT = 2
MEAN = "mean"  # of the accuracies among the forgetting tasks
CLAIMS_FILE, ANALYSIS_FILE, COST_FILE = "claims.json", "analysis.json", "cost.json"
RECOMMENDATION_FILE, SUMMARY_FILE = "recommendation.json", "summary.json"
RECORD_FILE = "laura.json"
DECIMALS = 12
ENERGY = "90"  # per cent of the sum of squares that a rank keeps (Biderman et al. 2024, section 5)

Ends = tuple[FiniteFloat | None, FiniteFloat | None]
"""Both ends of an interval; None where it is open."""

Verdict = Literal["supported", "contradicted", "mixed", "undecided", "suggested"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "mixed", "suggested", "undecided")


class File(BaseModel):
    """A part of a study's file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _sane(found: Estimate) -> Estimate:
    if found.stderr < 0 or found.n < 0:
        raise ValueError(f"stderr {found.stderr:g} and n {found.n} must not be below 0")
    return found


Measurement = Annotated[Estimate, AfterValidator(_sane)]
"""A measured number, {"value", "stderr", "n"}, checked as it is read."""

Rounded = Annotated[float, AfterValidator(lambda value: round(value, DECIMALS) + 0.0)]
"""Without the last digits, in which matrix products differ between machines."""

Count = Annotated[int, Field(ge=0)]

Amount = int | float
"""Tokens, which are whole, or epochs."""


class Estimated(File):
    """A number with the interval that holds its errors over seeds and items."""

    value: FiniteFloat
    unit: str
    stderr: Annotated[FiniteFloat, Field(ge=0)]
    interval: tuple[FiniteFloat, FiniteFloat]
    level: FiniteFloat = 0.95
    n: int = Field(ge=0)
    seeds: int = Field(ge=0)

    @classmethod
    def of(cls, contrast: Contrast, unit: str, level: float = LEVEL) -> Estimated:
        """A contrast as files and pages hold it."""
        return cls(
            value=contrast.value, unit=unit, stderr=contrast.stderr,
            interval=contrast.interval(level), level=level, n=contrast.n, seeds=contrast.seeds,
        )  # fmt: skip


# ----- summary.json -----


class BaseIdentity(File):
    """The model that was adapted.

    `fingerprint` is a hash of its weights, as they were before `quantization`: nf4 where it
    was held in four bits, trained on and measured so.
    """

    model: str = Field(min_length=1)
    fingerprint: str = Field(min_length=1)
    parameters: Count | None = None
    quantization: Literal["nf4"] | None = None


class ScoredBase(BaseIdentity):
    """The base and its score on every task, and on `mean`."""

    scores: dict[str, Measurement] = {}


class MeasuredTasks(File):
    """Names of what is measured; the first learning task leads."""

    learning: list[str]
    forgetting: list[str]


class TaskFacts(File):
    """One thing that is measured.

    Attributes:
        name: Key among scores and changes: a task, `mean`, or `validation_loss`.
        title: What a reader calls it, such as "GSM8K, strict match".
        metric: The metric that leads.
        unit: `share`, `nats per token`, `nats per byte`, or `score` for any other mean.
        higher_is_better: Direction of goodness.
        n: Items (questions or documents); 0 where none was measured.
    """

    name: str
    title: str
    metric: str = ""
    unit: str
    higher_is_better: bool
    n: Count = 0

    @property
    def is_share(self) -> bool:
        """Whether values are shares in [0, 1], shown as per cent and in points."""
        return self.unit == "share"

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of what is right, which can be averaged with others."""
        return self.is_share and self.higher_is_better

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def short_title(self) -> str:
        """The title up to its first comma or colon."""
        return re.split("[,:]", self.title)[0].strip()

    @property
    def items(self) -> str:
        """What is counted by n, in words."""
        return "questions" if self.is_share else "documents" if "nats" in self.unit else "items"


class BudgetPoints(File):
    """How long was trained; `mode` is `hot` or `separate`."""

    unit: Literal["tokens", "epochs"]
    points: list[Amount]
    mode: str = ""


class ArmRow(File):
    """One way of adapting the base.

    Attributes:
        rates: Learning rates that were run, or are to be, rising.
        best: Seed to the best rate among those run with it; seeds without one are missing.
        edge: At which end of its rates a best one lies: "", `low`, `high` or `both`.
    """

    name: str
    method: str
    settings: dict[str, Any] = {}
    trainable_parameters: Count | None = None
    rates: list[float] = []
    best: dict[int, float] = {}
    edge: Literal["", "low", "high", "both"] = ""


class TrialRow(File):
    """An arm at one rate with the first seed; higher `value` is better."""

    arm: str
    learning_rate: float
    state: str
    value: float | None = None
    forgetting: float | None = None
    allowed: bool | None = None


class FamilyTable(File):
    """What was tried of one family of arms, and what not."""

    name: str
    arms: list[str]
    space: dict[str, Any]
    tried: list[TrialRow]
    best: TrialRow | None = None
    untried: list[str] = []


class SearchTable(File):
    """How rates were searched for; absent for plain lists of rates."""

    sampler: str
    objective: str
    pruner: str
    max_forgetting: float | None = None
    trials: int | None = None
    families: list[FamilyTable] = []


class RunRow(File):
    """One training.

    Attributes:
        budget: None where the run passes several.
        reason: Why it ended as it did, where that is known.
        loss_curve: (tokens, nats per supervised token).
        selected: Whether its rate is the best of its arm with its seed.
    """

    id: str
    arm: str
    learning_rate: float
    seed: int
    budget: Amount | None = None
    state: Literal["done", "diverged", "failed", "pruned", "open"]
    reason: str = ""
    loss_curve: list[tuple[Amount, float]] = []
    selected: bool = False


class PointRow(File):
    """One measured checkpoint of one run.

    Attributes:
        tokens, supervised_tokens: Trained on so far, and how many of them were learnt.
        mix: What was read of target and replay; empty where nothing is replayed.
        selected: Whether its rate is the best of its arm with its seed.
        scores: Task to score; also `mean` where all its tasks were measured, and
            `validation_loss`.
        changes: Task (and `mean`) to tuned minus base, paired over items.
    """

    run: str
    arm: str
    learning_rate: float
    seed: int
    budget: Amount
    tokens: Count
    supervised_tokens: Count = 0
    mix: dict[str, Any] = {}
    step: Count
    selected: bool = False
    scores: dict[str, Measurement] = {}
    changes: dict[str, Measurement] = {}


class Summary(File):
    """What was run and measured, without a conclusion."""

    format: Literal[2] = 2
    name: str
    domain: str = ""
    regime: str = ""
    laura: str = ""
    base: ScoredBase
    measure: MeasuredTasks
    tasks: dict[str, TaskFacts]
    budget: BudgetPoints
    arms: list[ArmRow]
    search: SearchTable | None = None
    runs: list[RunRow]
    points: list[PointRow]

    @model_validator(mode="after")
    def _knows_its_tasks(self) -> Self:
        used = {*self.measure.learning, *self.measure.forgetting, *self.base.scores}
        for point in self.points:
            used |= {*point.scores, *point.changes}
        if unknown := sorted(used - self.tasks.keys()):
            raise ValueError(f"tasks lacks {', '.join(unknown)}, of which there are scores")
        return self

    @property
    def primary(self) -> str | None:
        """The learning task that leads."""
        return self.measure.learning[0] if self.measure.learning else None

    @property
    def accuracies(self) -> list[str]:
        """Forgetting tasks whose accuracies make up `mean`."""
        return [name for name in self.measure.forgetting if self.tasks[name].is_accuracy]

    @property
    def forgetting_measures(self) -> list[str]:
        """`mean` where there are accuracies, then all others, such as losses."""
        accuracies = self.accuracies if MEAN in self.tasks else []
        others = [name for name in self.measure.forgetting if name not in accuracies]
        return ([MEAN] if accuracies else []) + others

    def task(self, name: str) -> TaskFacts:
        """What a key means; of a task that only an extra samples nothing but the name is known."""
        plain = TaskFacts(name=name, title=name, unit="share", higher_is_better=True)
        return self.tasks.get(name, plain)

    def change(self, point: PointRow, name: str) -> Estimate | None:
        """Tuned minus base in the task's own unit; None where one was not measured.

        The paired change where it is given. Otherwise, as where the items differ, the plain
        difference with the two standard errors added in squares, which is too large rather
        than too small.
        """
        if name in point.changes:
            return point.changes[name]
        tuned, base = point.scores.get(name), self.base.scores.get(name)
        if tuned is None or base is None:
            return None
        stderr = math.hypot(tuned.stderr, base.stderr)
        return Estimate(tuned.value - base.value, stderr, min(tuned.n, base.n))


# ----- analysis.json -----


class FrontPoint(File):
    """An arm at one rate and budget that nothing beats in learning and forgetting.

    `learning` is what was learnt beyond the base, turned so that higher is better, and
    `forgetting` how much worse the source scores became: means over `seeds`.
    """

    arm: str
    learning_rate: float
    budget: Amount
    learning: Rounded
    forgetting: Rounded
    seeds: list[int]
    runs: list[str]


class Area(File):
    """Share of the trade-off plane that an arm dominates, with its 95 % bootstrap interval."""

    value: Rounded
    interval: tuple[Rounded, Rounded] | None = None
    seeds: Count = 0


class Tradeoff(File):
    """Learning against forgetting, over all rates and budgets of every arm."""

    learning: str
    forgetting: str
    front: list[FrontPoint] = []
    area: dict[str, Area] = {}


class NeededRow(File):
    """Budget that an arm needs to reach a level of a task; None where it never does.

    Attributes:
        level: The task's score.
        share: Of the way from the base to the best there is.
        at_most: The first budget was already beyond the level.
        interval: 95 % bootstrap; an end is None where it is open.
        reached: Share of the draws that reach it.
        rates: Rates of the curve, each seed at its best.
    """

    arm: str
    task: str
    level: Rounded
    share: Rounded
    unit: Literal["tokens", "epochs"]
    needed: Rounded | None
    at_most: bool = False
    interval: tuple[Rounded | None, Rounded | None] | None = None
    reached: Rounded
    rates: list[float]
    seeds: Count
    n: Count


class SampledRow(File):
    """Whose many samples of a task: arm, run and the rest are None for the base.

    `extra` is the recipe's extra that drew them, `samples` how many of each prompt.
    """

    extra: str
    task: str
    arm: str | None = None
    run: str | None = None
    seed: int | None = None
    learning_rate: float | None = None
    budget: Amount | None = None
    samples: Count
    temperature: float | None = None


class DiversityRow(SampledRow):
    """How varied the samples of a prompt are, means over prompts; see `analysis.diversity`.

    `rarefied_to` and `self_bleu_of` are the samples among which these were counted.
    """

    rarefied_to: Count = 0
    self_bleu_of: Count = 0
    distinct: Measurement | None = None
    distinct_passed: Measurement | None = None
    distinct_failed: Measurement | None = None
    rarefied: Measurement | None = None
    rarefied_passed: Measurement | None = None
    rarefied_failed: Measurement | None = None
    self_bleu: Measurement | None = None
    answer_entropy: Measurement | None = None


class PassAtKRow(SampledRow):
    """pass@k by k, rising."""

    at_k: dict[int, Measurement]


class CountDifference(File):
    """One model's count minus another's, paired by prompt; None among `arms` is the base."""

    extra: str
    task: str
    arms: tuple[str | None, str | None]
    budget: Amount
    measure: str
    difference: float
    stderr: Annotated[float, Field(ge=0)]
    n: Count
    seeds: Count


class DriftRow(File):
    """A divergence of one checkpoint from the base."""

    arm: str
    run: str
    seed: int
    learning_rate: float
    budget: Amount
    measure: str
    value: Measurement


class DriftFit(File):
    """How much of the forgetting a divergence from the base explains, over `n` checkpoints."""

    measure: str
    forgetting: str
    r_squared: Rounded
    n: Count


class TransitionRow(File):
    """Items that turned between the base and an arm at its best rate.

    Attributes:
        task: A task, or `mean` over the accuracies among the forgetting tasks.
        forgotten: Share of items right on the base and wrong on the tuned model.
        gained: Share wrong on the base and right on the tuned model.
        luck: What of either guessing anew could give; None where that is not known.
    """

    arm: str
    budget: Amount
    task: str
    forgotten: Estimated
    gained: Estimated
    luck: Rounded | None = None


class StagesRow(File):
    """What an arm holds of the tasks of a series, at the rates that each stage chose.

    Attributes:
        settings: The stages, in order; this study is the last.
        tasks: The task of each.
        scores: After each stage, the mean score on the tasks up to it.
        overall: OP, the mean score over all tasks after the last stage.
        backward: BWT, the mean over the tasks but the last of the score after the last stage
            minus that right after the task was learnt.
    """

    arm: str
    settings: list[str]
    tasks: list[str]
    scores: list[list[Rounded]]
    overall: Estimated
    backward: Estimated


class RunSpikes(File):
    """Loss spikes of one run: steps that stand far above those before them.

    Attributes:
        count: How many, each a stretch of neighbouring steps.
        worst: Largest rise above the median before it (nats); None without a spike.
        steps: Where each begins.
        n: Steps that were looked at, branches counted once.
    """

    run: str
    arm: str
    learning_rate: float
    seed: int
    count: Count
    worst: Rounded | None = None
    steps: list[int] = []
    n: Count


class SpectrumFacts(File):
    """Numbers of a matrix's singular values; `rank` by percentage of the sum of squares.

    None where the matrix was not finite; `values` are the singular values, where kept.
    """

    rank: dict[str, int] | None = None
    effective_rank: float | None = None
    stable_rank: float | None = None
    frobenius: float | None = None
    spectral: float | None = None
    values: list[float] | None = None


class MatrixSpectra(SpectrumFacts):
    """One matrix of a tuned model: the spectrum is that of its update.

    Attributes:
        layer: None outside the layers.
        noise_rank: Ranks of iid noise of this shape.
        relative_frobenius: Norm of the update as a share of the base matrix's.
        intruders: Intruder dimensions; None where they were not counted.
        leading_energy: Shares of the update's energy in the leading directions of the base:
            `left`, `right`, `both`; None where that was not asked, or nothing changed.
    """

    name: str
    layer: int | None
    module: str
    shape: tuple[int, int]
    noise_rank: dict[str, float] = {}
    relative_frobenius: float | None = None
    relative_spectral: float | None = None
    base: SpectrumFacts | None = None
    tuned: SpectrumFacts | None = None
    intruders: Count | None = None
    leading_energy: dict[str, float] | None = None

    @property
    def rank_kept(self) -> int | None:
        """Directions that keep 90 % of the update's sum of squares."""
        return None if self.rank is None else self.rank.get(ENERGY)

    @property
    def noise_kept(self) -> float | None:
        """The same of iid noise of this shape."""
        return self.noise_rank.get(ENERGY)

    @property
    def kept_values(self) -> dict[str, list[float]]:
        """Kind (`base`, `tuned`, `update`) to falling singular values, where kept."""
        kinds = {"base": self.base, "tuned": self.tuned, "update": self}
        return {kind: own.values for kind, own in kinds.items() if own and own.values is not None}


class AnalysedCheckpoint(File):
    """Which checkpoint a part of the analysis is of."""

    run: str
    arm: str
    seed: int
    learning_rate: float
    budget: Amount
    step: Count


class CheckpointSpectra(AnalysedCheckpoint):
    """The matrices of one checkpoint; `settings` say how intruders were counted."""

    settings: dict[str, Any] = {}
    warnings: list[str] = []
    matrices: list[MatrixSpectra]


class SubspaceOverlap(File):
    """Shared share of the leading subspaces of two runs' updates of one matrix.

    None where an update is zero and has no directions; `angles` are principal (radians).
    """

    runs: tuple[str, str]
    name: str
    layer: int | None = None
    module: str = ""
    k: Count
    overlap: float | None = None
    noise_overlap: float | None = None
    angles: list[float] | None = None


class LayerMovement(File):
    """How far one layer moved; see `laura.analysis.movement`.

    Attributes:
        cka: Linear CKA of its hidden states, base and tuned; 1 where nothing moved.
        procrustes: Squared distance after the best rotation, 0 to 2.
        csd: By module, what the update adds to the output, as a share of it.
    """

    layer: Count
    cka: Rounded
    procrustes: Rounded
    csd: dict[str, Rounded]


class TextMovement(AnalysedCheckpoint):
    """How far one checkpoint moved on one text, `target` or `source`, over so many tokens."""

    text: Literal["target", "source"]
    tokens: Count
    layers: list[LayerMovement]


class Analysis(File):
    """What scores, samples and weights say together; every part may be empty.

    Intervals are 95 % percentile intervals of the bootstrap over items and, where there are
    several, seeds; standard errors are over items.
    """

    format: Literal[2] = 2
    tradeoff: Tradeoff | None = None
    efficiency: list[NeededRow] = []
    diversity: list[DiversityRow] = []
    diversity_differences: list[CountDifference] = []
    pass_at_k: list[PassAtKRow] = []
    drift: list[DriftRow] = []
    drift_fit: list[DriftFit] = []
    transitions: list[TransitionRow] = []
    stages: list[StagesRow] = []
    spikes: list[RunSpikes] = []
    spectra: list[CheckpointSpectra] = []
    subspaces: list[SubspaceOverlap] = []
    movement: list[TextMovement] = []
    gaps: list[str] = []


# ----- cost.json -----


class RunCost(File):
    """What training a run took; `tokens_per_second` is the median step's.

    `cohort` runs were trained in lock-step, and peak memory is that of all of them.
    """

    id: str
    arm: str
    learning_rate: float
    seed: int
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: Count
    flops: float
    cohort: int = Field(default=1, ge=1)


class ArmCost(File):
    """What the runs of one arm took: sums of time and FLOPs, median speed, largest peak."""

    arm: str
    runs: Count
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: Count
    flops: float


class Costs(File):
    """What a study took on this machine."""

    format: Literal[2] = 2
    machine: dict[str, Any] = {}
    runs: list[RunCost]
    evaluation_seconds: float | None = None

    @property
    def arms(self) -> list[ArmCost]:
        """The runs of each arm together."""
        by_arm: dict[str, list[RunCost]] = {}
        for run in self.runs:
            by_arm.setdefault(run.arm, []).append(run)
        return [_arm_cost(arm, runs) for arm, runs in by_arm.items()]


def _arm_cost(arm: str, runs: Sequence[RunCost]) -> ArmCost:
    return ArmCost(
        arm=arm,
        runs=len(runs),
        train_seconds=sum(run.train_seconds for run in runs),
        tokens_per_second=statistics.median(run.tokens_per_second for run in runs),
        peak_memory_bytes=max(run.peak_memory_bytes for run in runs),
        flops=sum(run.flops for run in runs),
    )


# ----- claims.json -----


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
    of learning that both reach, and `joint` its interval at the level at which those of all
    comparisons hold together. None where there is too little, and `reason` says what.
    """

    arms: tuple[str, str]
    budget: FiniteFloat | None = None
    learning: Estimated | None = None
    forgetting: Estimated | None = None
    equal_learning: Estimated | None = None
    levels: tuple[FiniteFloat, FiniteFloat] | None = None
    joint: tuple[FiniteFloat, FiniteFloat] | None = None
    edge: bool = False
    reason: str = ""


class JudgedSetting(File):
    """A study that was judged."""

    name: str
    domain: str
    regime: str
    arms: list[str]


class Configured(File):
    """An arm at a rate and a budget."""

    arm: str
    learning_rate: FiniteFloat
    budget: FiniteFloat


class Judgement(File):
    """What a study or a series concludes; every output takes its numbers and words from here.

    `answer` is one sentence of at most 25 words with what to do; `verdict` says how sure it
    is, `missing` what would decide or confirm it, and `options` what `laura compare` is given
    for that, which is `more_runs` runs; it speaks of the configurations `named`. `sentences`
    tell of the two arms that stand for the methods, `others` of the rest.
    """

    format: Literal[2] = 2
    answer: str
    verdict: Verdict | None = None
    missing: str = ""
    options: str = ""
    more_runs: Count = 0
    named: list[Configured] = []
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


class ReplayLaw(File):
    """What a law fitted over shares of replay says of a bound on forgetting.

    Attributes:
        arm: The arm without replay.
        shares: The shares that were tried.
        budget: The budget it speaks of, the largest.
        r_squared: Of the fit over shares and budgets.
        share: The least share that keeps the bound; None beyond the largest that was tried.
        interval: Its 95 % interval; an end that is None lies beyond likewise.
    """

    arm: str
    shares: list[FiniteFloat]
    budget: FiniteFloat
    r_squared: Rounded
    share: Rounded | None
    interval: tuple[Rounded | None, Rounded | None]


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
    chosen: Candidate | None = None
    alternatives: list[Candidate] = []
    confirm: str = ""
    replay: list[ReplayLaw] = []
    not_tried: list[str] = []
    recipe: str | None = None
    adapter: str | None = None


# ----- remedy.json -----


class ScoreMoved(File):
    """A change of a score with its 95 % interval over items."""

    value: FiniteFloat
    interval: tuple[FiniteFloat, FiniteFloat]
    n: Count


class RemedyCandidate(File):
    """A candidate against the adapter as it is, on the half of the items that chooses."""

    name: str
    unlearnt: ScoreMoved
    kept: ScoreMoved


class Polish(File):
    """How an adapter was trained on a little.

    Attributes:
        start: The candidate that it began with.
        minutes: What it was given, for texts and training together,
        seconds: and what each candidate had of that to train.
        tokens: What each was trained on,
        replay: the share of them that the base wrote,
        texts: and how many of its texts there were.
        learning_rate: Its peak.
        left_out: Why nothing was trained.
    """

    start: str
    minutes: FiniteFloat
    seconds: FiniteFloat
    tokens: dict[str, Count]
    replay: FiniteFloat
    texts: Count
    learning_rate: FiniteFloat
    left_out: str | None


class Remedied(File):
    """What `laura remedy` found for a finished adapter.

    Attributes:
        accepted: Whether the chosen candidate is not worse on the target and forgets less.
        answer: What to take, or why nothing.
        margin: Share of what was learnt that may be lost,
        allowed: and the same in nats per token of the target loss.
        forgetting_tasks: By what forgetting was judged.
        learnt: What the adapter learnt of the base's target loss, nats per token.
        forgot: What it forgot.
        candidates: All that were tried.
        chosen: The one that was chosen on the even items.
        unlearnt: What it loses on the odd items, against the adapter.
        kept: What it keeps more there.
        polish: How candidates of that name were trained; None where nothing was to be.
    """

    format: Literal[1] = 1
    accepted: bool
    answer: str
    margin: FiniteFloat
    allowed: FiniteFloat
    forgetting_tasks: list[str]
    learnt: ScoreMoved
    forgot: ScoreMoved
    candidates: list[RemedyCandidate]
    chosen: str | None = None
    unlearnt: ScoreMoved | None = None
    kept: ScoreMoved | None = None
    polish: Polish | None = None


# ----- laura.json -----


class TaskScores(File):
    """One task on the base and on these weights; `change` is tuned minus base, paired."""

    title: str
    unit: str
    higher_is_better: bool
    base: Measurement | None
    tuned: Measurement
    change: Measurement | None


class EstimatedTasks(Estimated):
    """Learning or forgetting of a configuration over its seeds, and by which tasks.

    `value` is above zero where something was learnt, or forgotten. The interval holds the
    errors over items and seeds, at a level that allows for the choice among candidates.
    """

    tasks: list[str] = Field(min_length=1)


class RecordedClaim(File):
    """The verdict on one statement, as in `claims.json`."""

    id: str
    statement: str
    verdict: Verdict
    reason: str


class Record(File):
    """What is known of an adapter or checkpoint; it travels with the weights.

    So whoever serves or judges them knows the base, the recipe, the scores with their
    errors, and which of the paper's statements held there. `recipe` is the study's, with
    every default filled in, as it was read by the version that trained; `budget` is in
    `budget_unit`; `confirmed` says that learning and forgetting come from seeds that had no
    part in the choice; `weights` maps each file to its SHA-256.
    """

    format: Literal[2] = 2
    study: str
    base: BaseIdentity
    recipe: dict[str, Any]
    arm: str
    method: str
    learning_rate: float = Field(gt=0)
    seed: Count
    budget: float = Field(gt=0)
    budget_unit: Literal["tokens", "epochs"]
    tokens: Count
    step: Count
    run: str
    scores: dict[str, TaskScores]
    confirmed: bool
    learning: EstimatedTasks
    forgetting: EstimatedTasks
    claims: list[RecordedClaim]
    versions: dict[str, str]
    weights: dict[str, str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever puts it on its base should know: nothing here is served quantised."""
        if self.base.quantization is None:
            return ()
        return (
            f"it was trained and measured on its base in {self.base.quantization}; on the base "
            "as it is, unquantised, its answers and scores differ from those of its record",
        )


def write_record(folder: Path, record: Record) -> None:
    """Write `laura.json` into a folder of weights.

    Raises:
        StoreError: the folder cannot be written.
    """
    write_text(folder / RECORD_FILE, record.model_dump_json(indent=1) + "\n")


def read_record(folder: Path) -> Record:
    """Read and check the `laura.json` of a folder of weights.

    Raises:
        StoreError: there is none, or it is not whole; every fault is listed.
    """
    path = folder / RECORD_FILE
    with disk_faults(path):
        text = read_bounded(path, MOST_CONFIG_BYTES)
    return parse_record(text, path)


def parse_record(text: bytes, path: Path) -> Record:
    """Check the content of a `laura.json`; the path is for the message.

    Raises:
        StoreError: as `read_record`.
    """
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise StoreError(
            f"{path} is no record of format {FORMAT} that this version can read: "
            f"{faults_of(error)}. Write it again with `laura recommend STUDY --adapter DIR`"
        ) from error


# ----- reading and writing -----

F = TypeVar("F", bound=File)


def refuse_older(study: Path) -> None:
    """Refuse a study folder whose files are of an older format, before any is written anew.

    What is damaged is told by whoever reads it.

    Raises:
        UsageError: they are; the message says what makes them anew.
    """
    for name in (SUMMARY_FILE, ANALYSIS_FILE):
        with suppress(StoreError):
            _refuse_older(read_json(study / name), study / name)


def _refuse_older(value: Any, path: Path) -> None:
    found = value.get("format", 1) if isinstance(value, dict) else FORMAT
    if isinstance(found, int) and found < FORMAT:
        own = path.parent / "recipe.yaml"
        recipe = str(own) if own.is_file() else "RECIPE"
        raise UsageError(
            f"{path} is of an older format; `laura compare {recipe} --out {path.parent}` makes "
            "it anew (runs and measurements are kept)"
        )


def faults_of(error: ValidationError) -> str:
    """Every fault of a file with its place, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}"
        for one in error.errors(include_url=False)
    )


def read_file(kind: type[F], path: Path) -> F:
    """A study's file, checked.

    Raises:
        UsageError: it is of an older format; the message says what makes it anew.
        StoreError: it is missing or damaged; every fault is named.
    """
    value = read_json(path)
    _refuse_older(value, path)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise StoreError(
            f"{path} is damaged: {faults_of(error)}. Delete it and give the command that wrote "
            "it again"
        ) from error


def read_optional(kind: type[F], path: Path) -> F | None:
    """A study's file, checked; None where there is none.

    Raises:
        UsageError, StoreError: as `read_file`.
    """
    return read_file(kind, path) if path.is_file() else None


def write_file(path: Path, value: File) -> None:
    """Write a study's file whole or not at all.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    write_json(path, value.model_dump(mode="json"))
