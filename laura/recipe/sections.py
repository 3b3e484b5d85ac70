"""A recipe: what is compared, on which data, and how it is measured.

Every default lives with its key and nowhere else: the arms in `arms.py`, the measures in
`measure.py`, the search in `search.py`, the rest here. Each part of Laura receives its own
section, never the whole recipe. What two sections must agree on is in `checks.py`,
reading YAML in `reading.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from laura.recipe.arms import Arm, FullArm, LoraArm, write_out_grids
from laura.recipe.measure import Extra, MeasureSection
from laura.recipe.search import SearchSection
from laura.recipe.section import (
    Count,
    Positive,
    Section,
    Seed,
    Share,
    refuse,
    short,
    twice,
)
from laura.recipe.tasks import NAME_PATTERN

__all__ = [
    "AnalysisSection",
    "Arm",
    "BaseSection",
    "BudgetSection",
    "DataSection",
    "Extra",
    "FullArm",
    "LoraArm",
    "MeasureSection",
    "Recipe",
    "ReplaySource",
    "SearchSection",
    "Section",
    "Source",
    "TrainSection",
]


BASE_SAMPLES = "base_samples"
SAMPLED_ONLY = ("count", "tokens", "temperature", "prompts", "prompt_tokens")
READ_ONLY = ("split", "subset", "limit")


class BaseSection(Section):
    """The model before adaptation."""

    model: str = Field(min_length=1)
    """Registry name, Hub id, folder, or GGUF file of a Llama-type model."""
    revision: str | None = None
    """Hub branch, tag or commit; null for main."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the weights are held in; full finetuning needs float32."""


class Source(Section):
    """Where rows come from; a plain string is short for `{source: ...}`."""

    source: str = Field(min_length=1)
    """Named set, JSONL file (also .gz), or Hub data set id."""
    split: str | None = None
    """Split, where the source has several; null for the set's own default."""
    subset: str | None = None
    """Hub configuration name, where there are several."""
    limit: Count | None = None
    """Use at most this many rows; null for all."""

    @property
    def rows(self) -> tuple[str, str | None, str | None]:
        """What tells rows apart whatever their number; `limit` takes the first of the same."""
        return self.source, self.split, self.subset


def _source_from_text(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


SourceField = Annotated[
    Source, BeforeValidator(_source_from_text, json_schema_input_type=str | Source)
]


class ReplaySource(Source):
    """What is replayed; `base_samples` are texts that the base itself writes before training."""

    source: str = Field(min_length=1)
    """As for any source, or `base_samples`. A text is learnt on every token, of a conversation
    what `regime` says."""
    weight: Positive = 1.0
    """Share of the replay tokens, relative to the weights of the other sources; they need not sum
    to 1."""
    count: Count | None = None
    """`base_samples`: texts to draw, one of each seed from 0; needed."""
    tokens: Count = 256
    """`base_samples`: most new tokens of a text."""
    temperature: float = Field(1.0, ge=0.01)
    """`base_samples`: logits are divided by it."""
    prompts: SourceField | None = None
    """`base_samples`: rows that are continued, used in turn: the beginning of a text, or what a
    conversation asks; null starts from nothing but the begin token."""
    prompt_tokens: Count = 16
    """`base_samples`: so many tokens of a text in `prompts` are given."""

    @property
    def is_sampled(self) -> bool:
        """Whether the base writes it."""
        return self.source == BASE_SAMPLES

    def faults(self) -> Iterable[tuple[str, str]]:
        """Keys of the other kind of source, and a missing count."""
        kind = "does not apply to" if self.is_sampled else "is only for"
        for name in READ_ONLY if self.is_sampled else SAMPLED_ONLY:
            if getattr(self, name) != type(self).model_fields[name].default:
                yield name, f"{kind} source: {BASE_SAMPLES}; leave it out"
        if self.is_sampled and self.count is None:
            yield "count", "is needed: how many texts the base shall write, such as 1000"


ReplayField = Annotated[
    ReplaySource, BeforeValidator(_source_from_text, json_schema_input_type=str | ReplaySource)
]


class DataSection(Section):
    """What is learnt, and the text that losses are measured on."""

    train: SourceField
    """Rows to learn from."""
    validation: SourceField | None = None
    """Rows that choose the learning rate; null holds rows out of `train`."""
    validation_rows: Count = 200
    """Rows held out of `train` when `validation` is null."""
    test: SourceField | None = None
    """Target-domain rows for `target_loss` and `kl`; never trained on."""
    source_text: SourceField | None = None
    """Text the base already models well, for `source_loss`."""
    template: Literal["chat", "plain"] = "chat"
    """`chat`: the model's own chat template; `plain`: question, blank, answer."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What happens to an example longer than `train.row_tokens`."""
    replay: list[ReplayField] = Field([])
    """Rows mixed among those of `train` in the arms that set `replay`, row by row and counted in
    tokens; never the same as what is measured on."""
    replay_exhausted: Literal["repeat", "error"] = "repeat"
    """When a replay source has too few tokens for a budget: begin it again, which run.json and the
    verdict tell, or stop before training."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Replay sources that are named twice, or that are measured on."""
        measured = [(name, getattr(self, name)) for name in ("validation", "test", "source_text")]
        names = {source.rows: name for name, source in measured if source}
        seen: set[ReplaySource] = set()
        for number, source in enumerate(self.replay):
            same = source.model_copy(update={"weight": 1.0})
            if same in seen:
                yield f"replay.{number}", "names a source twice; keep one, with the weights added"
            seen.add(same)
            for read, key in ((source, ""), (source.prompts, ".prompts")):
                if read is not None and read.rows in names:
                    yield (
                        f"replay.{number}{key}",
                        f"is data.{names[read.rows]}, and what is measured must not be learnt; "
                        "choose another split or source",
                    )


class BudgetSection(Section):
    """How long each run trains; a checkpoint is measured at each point of the list."""

    tokens: list[Count] | None = None
    """Training tokens, rising: all that pass through the model, target and replay together (an
    arm with `replay: 0.25` reads 3/4 of them from `train`)."""
    epochs: list[Positive] | None = None
    """Passes over the rows of `train`, rising; needs a finite source. Replay comes on top."""
    points: Literal["separate", "hot"] = "separate"
    """`separate`: every point has its own complete schedule (a run of its own with cosine, a
    cooldown branch off one trunk with trapezoidal; constant needs none). `hot`: points are
    snapshots of the longest run, not cooled down."""

    @property
    def listed(self) -> Sequence[float]:
        """The points, in tokens or in epochs."""
        return self.tokens or self.epochs or []

    @field_validator("tokens", "epochs")
    @classmethod
    def _rising(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (not value or sorted(set(value)) != value):
            raise ValueError(f"must be a rising list with at least one point, came {short(value)}")
        return value

    def faults(self) -> Iterable[tuple[str, str]]:
        """Neither or both of the two units."""
        if (self.tokens is None) == (self.epochs is None):
            yield "", "give either tokens or epochs, one of the two"


class TrainSection(Section):
    """The loop's settings, the same for every arm."""

    later = frozenset({"weight_decay_rule", "cohort", "warmup_steps"})

    optimiser: Literal["adamw", "lion"] = "adamw"
    """AdamW (fused) or decoupled Lion."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    """Null: 0.9, 0.999 for adamw and 0.9, 0.95 for lion."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay_rule: Literal["pytorch", "composer"] | None = None
    """`pytorch`: a step takes off weight_decay × rate; `composer`, as the paper's library:
    weight_decay × rate / peak rate, so the rate's height does not matter. Null: pytorch for adamw,
    composer for lion."""
    schedule: Literal["cosine", "constant", "trapezoidal"] = "cosine"
    """Rate over time."""
    warmup: Share = 0.1
    """Share of the run spent warming up linearly."""
    warmup_steps: int | None = Field(None, ge=0)
    """Optimiser steps of warm-up, instead of the share `warmup`; a trapezoidal budget that ends
    before them cools down from the rate it has reached. A run that would never reach its rate is
    refused."""
    cooldown: Share = 0.2
    """Last share of a trapezoidal budget, falling to zero."""
    final_factor: Share = 0.01
    """Cosine ends at this share of the peak rate."""
    batch_tokens: int = Field(2048, ge=8)
    """Tokens of one optimiser step."""
    row_tokens: int = Field(1024, ge=8)
    """Tokens of one packed row; also the longest example."""
    rows_per_pass: Count = 2
    """Rows that go through the model together; smaller needs less memory."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the processor has bf16 arithmetic."""
    clip: Positive | None = 1.0
    """Largest gradient norm; null for no clipping."""
    cohort: Count = 1
    """LoRA runs that differ in the learning rate alone are trained in lock-step on one copy of the
    base, at most so many together. On a GPU they share their passes, and the activations of all of
    them are in memory at once. A search has no such runs."""
    checkpoint_minutes: Positive = 10.0
    """A resumable checkpoint at least so often."""
    validate_every: Count | None = None
    """Steps between validation losses; null: only at budget points."""

    @property
    def beta_values(self) -> tuple[float, float]:
        """Betas with the optimiser's default filled in."""
        return self.betas or ((0.9, 0.999) if self.optimiser == "adamw" else (0.9, 0.95))

    @property
    def decay_rule(self) -> Literal["pytorch", "composer"]:
        """The rule of weight decay with the optimiser's own filled in."""
        return self.weight_decay_rule or ("pytorch" if self.optimiser == "adamw" else "composer")

    def faults(self) -> Iterable[tuple[str, str]]:
        """A step that is shorter than a row, and a schedule without a middle."""
        if self.batch_tokens < self.row_tokens:
            problem = f"{self.batch_tokens} < row_tokens {self.row_tokens}"
            yield "batch_tokens", f"must hold at least one row: {problem}"
        if self.warmup + (self.cooldown if self.schedule == "trapezoidal" else 0) >= 1:
            yield "warmup", "warm-up and cooldown together must leave some steps between"


class AnalysisSection(Section):
    """What is read out of saved weights, after the last run."""

    spectra: Literal["none", "final", "all"] = "none"
    """Rank and spectrum of every matrix's update, in the runs at each arm's best rate. `final`: at
    the last budget; `all`: at every budget point."""
    intruders: bool = False
    """Also count intruder dimensions (Shuttleworth et al. 2024); takes longer."""
    intruder_k: Count = 10
    """Leading directions of a tuned matrix that may be intruders."""
    intruder_eps: float = Field(0.5, gt=0, le=1)
    """A direction is an intruder if its absolute cosine with every direction of the base is below
    this."""
    subspace_k: Count | None = 8
    """Leading directions of the updates of the best lora and the best full arm that are compared,
    matrix by matrix; null for no comparison."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Intruders that would be counted nowhere."""
        if self.intruders and self.spectra == "none":
            yield (
                "intruders",
                "are counted where spectra are taken, and analysis.spectra is none; set it to "
                "final or all",
            )


class Recipe(Section):
    """A whole comparison."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the study and of its folder."""
    base: BaseSection
    domain: str = Field("target", min_length=1)
    """Target domain, used in words and charts."""
    regime: Literal["instruct", "pretrain"] = "instruct"
    """instruct: loss on answers only; pretrain: loss on every token."""
    data: DataSection
    budget: BudgetSection
    arms: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Arm] = Field(min_length=1)
    """Name of each arm, and its settings."""
    train: TrainSection = Field(default_factory=TrainSection)
    search: SearchSection = Field(default_factory=SearchSection)
    seeds: list[Seed] = Field([0, 1, 2], min_length=1)
    """Seeds of data order and initial weights; `search.seeds` says which of them every rate is run
    with. With fewer than three nothing is clear."""
    measure: MeasureSection = Field(default_factory=MeasureSection)
    analysis: AnalysisSection = Field(default_factory=AnalysisSection)

    def faults(self) -> Iterable[tuple[str, str]]:
        """A seed that is named twice."""
        if problem := twice(self.seeds):
            yield "seeds", problem

    @model_validator(mode="after")
    def _without_grids(self) -> Self:
        arms, families = write_out_grids(self.arms)
        named_too = [name for name in families if name in self.search.families]
        if named_too:
            problem = "is a family already, made by the arm's grid; leave it out"
            refuse({("search", "families", name): problem for name in named_too})
        if not families:
            return self
        search = self.search.model_copy(update={"families": {**self.search.families, **families}})
        return self.model_copy(update={"arms": arms, "search": search})
