"""A recipe: what is compared, on which data, and how it is measured.

Every default lives in the files `recipe*.py` and nowhere else: the arms in
`recipe_arms.py`, the measures in `recipe_measure.py`, the search in
`recipe_search.py`, the analysis in `recipe_analysis.py`, the rest here. Each part of
Laura receives its own section, never the whole recipe. Reading YAML, overriding and
gathering faults is in
`recipe_reading.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from laura.recipe.analysis import AnalysisSection
from laura.recipe.arms import Arm, FullArm, LoraArm
from laura.recipe.extras import Extra
from laura.recipe.measure import MeasureSection
from laura.recipe.search import SearchSection
from laura.recipe.section import Section, Share
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


class BaseSection(Section):
    """The model before adaptation."""

    model: str = Field(
        min_length=1,
        description="Registry name, Hub id, folder, or GGUF file of a Llama-type model.",
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit; null for main.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type the weights are held in; full finetuning needs float32."
    )


class Source(Section):
    """Where rows come from; a plain string is short for `{source: ...}`."""

    source: str = Field(
        min_length=1, description="Named set, JSONL file (also .gz), or Hub data set id."
    )
    split: str | None = Field(
        None, description="Split, where the source has several; null for the set's own default."
    )
    subset: str | None = Field(None, description="Hub configuration name, where there are several.")
    limit: int | None = Field(None, ge=1, description="Use at most this many rows; null for all.")


def _source_from_text(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


SourceField = Annotated[
    Source, BeforeValidator(_source_from_text, json_schema_input_type=str | Source)
]


class ReplaySource(Source):
    """What is replayed; `base_samples` are texts that the base itself writes before training."""

    source: str = Field(
        min_length=1,
        description="As for any source, or `base_samples`. A text is learnt on every token, of a "
        "conversation what `regime` says.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="Share of the replay tokens, relative to the weights of the other sources; "
        "they need not sum to 1.",
    )
    count: int | None = Field(
        None, ge=1, description="`base_samples`: texts to draw, one of each seed from 0; needed."
    )
    tokens: int = Field(256, ge=1, description="`base_samples`: most new tokens of a text.")
    temperature: float = Field(
        1.0, ge=0.01, description="`base_samples`: logits are divided by it."
    )
    prompts: SourceField | None = Field(
        None,
        description="`base_samples`: rows that are continued, used in turn: the beginning of a "
        "text, or what a conversation asks; null starts from nothing but the begin token.",
    )
    prompt_tokens: int = Field(
        16, ge=1, description="`base_samples`: so many tokens of a text in `prompts` are given."
    )

    @property
    def is_sampled(self) -> bool:
        """Whether the base writes it."""
        return self.source == BASE_SAMPLES


ReplayField = Annotated[
    ReplaySource, BeforeValidator(_source_from_text, json_schema_input_type=str | ReplaySource)
]


class DataSection(Section):
    """What is learnt, and the text that losses are measured on."""

    train: SourceField = Field(description="Rows to learn from.")
    validation: SourceField | None = Field(
        None, description="Rows that choose the learning rate; null holds rows out of `train`."
    )
    validation_rows: int = Field(
        200, ge=1, description="Rows held out of `train` when `validation` is null."
    )
    test: SourceField | None = Field(
        None, description="Target-domain rows for `target_loss` and `kl`; never trained on."
    )
    source_text: SourceField | None = Field(
        None, description="Text the base already models well, for `source_loss`."
    )
    template: Literal["chat", "plain"] = Field(
        "chat",
        description="`chat`: the model's own chat template; `plain`: question, blank, answer.",
    )
    overlong: Literal["error", "drop", "truncate"] = Field(
        "error", description="What happens to an example longer than `train.row_tokens`."
    )
    replay: list[ReplayField] = Field(
        default=[],
        description="Rows mixed among those of `train` in the arms that set `replay`, row by row "
        "and counted in tokens; never the same as what is measured on.",
    )
    replay_exhausted: Literal["repeat", "error"] = Field(
        "repeat",
        description="When a replay source has too few tokens for a budget: begin it again, which "
        "run.json and the verdict tell, or stop before training.",
    )


class BudgetSection(Section):
    """How long each run trains; a checkpoint is measured at each point of the list."""

    tokens: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="Training tokens, rising: all that pass through the model, target and replay "
        "together (an arm with `replay: 0.25` reads 3/4 of them from `train`).",
    )
    epochs: list[Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Passes over the rows of `train`, rising; needs a finite source. Replay comes "
        "on top.",
    )
    points: Literal["separate", "hot"] = Field(
        "separate",
        description="`separate`: every point has its own complete schedule (a run of its own "
        "with cosine, a cooldown branch off one trunk with trapezoidal; constant needs none). "
        "`hot`: points are snapshots of the longest run, not cooled down.",
    )

    @field_validator("tokens", "epochs")
    @classmethod
    def _rising(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (not value or sorted(set(value)) != value):
            raise ValueError(f"must be a rising list with at least one point, came {value}")
        return value


class TrainSection(Section):
    """The loop's settings, the same for every arm."""

    later = frozenset({"weight_decay_rule", "cohort", "warmup_steps"})

    optimiser: Literal["adamw", "lion"] = Field(
        "adamw", description="AdamW (fused) or decoupled Lion."
    )
    betas: Annotated[tuple[Share, Share], Field(strict=False)] | None = Field(
        None, description="Null: 0.9, 0.999 for adamw and 0.9, 0.95 for lion."
    )
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay_rule: Literal["pytorch", "composer"] | None = Field(
        None,
        description="`pytorch`: a step takes off weight_decay × rate; `composer`, as the paper's "
        "library: weight_decay × rate / peak rate, so the rate's height does not matter. Null: "
        "pytorch for adamw, composer for lion.",
    )
    schedule: Literal["cosine", "constant", "trapezoidal"] = Field(
        "cosine", description="Rate over time."
    )
    warmup: Share = Field(0.1, description="Share of the run spent warming up linearly.")
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Optimiser steps of warm-up, instead of the share `warmup`; a trapezoidal "
        "budget that ends before them cools down from the rate it has reached. A run that would "
        "never reach its rate is refused.",
    )
    cooldown: Share = Field(0.2, description="Last share of a trapezoidal budget, falling to zero.")
    final_factor: Share = Field(0.01, description="Cosine ends at this share of the peak rate.")
    batch_tokens: int = Field(2048, ge=8, description="Tokens of one optimiser step.")
    row_tokens: int = Field(
        1024, ge=8, description="Tokens of one packed row; also the longest example."
    )
    rows_per_pass: int = Field(
        2, ge=1, description="Rows that go through the model together; smaller needs less memory."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 autocast where the processor has bf16 arithmetic."
    )
    clip: float | None = Field(
        1.0, gt=0, description="Largest gradient norm; null for no clipping."
    )
    cohort: int = Field(
        1,
        ge=1,
        description="LoRA runs that differ in the learning rate alone are trained in lock-step on "
        "one copy of the base, at most so many together. On a GPU they share their passes, and "
        "the activations of all of them are in memory at once. A search has no such runs.",
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="A resumable checkpoint at least so often."
    )
    validate_every: int | None = Field(
        None, ge=1, description="Steps between validation losses; null: only at budget points."
    )

    @property
    def beta_values(self) -> tuple[float, float]:
        """Betas with the optimiser's default filled in."""
        if self.betas is not None:
            return self.betas
        return (0.9, 0.999) if self.optimiser == "adamw" else (0.9, 0.95)

    @property
    def decay_rule(self) -> Literal["pytorch", "composer"]:
        """The rule of weight decay with the optimiser's own filled in."""
        own: Literal["pytorch", "composer"] = "pytorch" if self.optimiser == "adamw" else "composer"
        return self.weight_decay_rule or own


class Recipe(Section):
    """A whole comparison."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the study and of its folder.")
    base: BaseSection
    domain: str = Field(
        "target", min_length=1, description="Target domain, used in words and charts."
    )
    regime: Literal["instruct", "pretrain"] = Field(
        "instruct", description="instruct: loss on answers only; pretrain: loss on every token."
    )
    data: DataSection
    budget: BudgetSection
    arms: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Arm] = Field(
        min_length=1, description="Name of each arm, and its settings."
    )
    train: TrainSection = Field(default_factory=TrainSection)
    search: SearchSection = Field(default_factory=SearchSection)
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default=[0, 1, 2],
        min_length=1,
        description="Seeds of data order and initial weights; `search.seeds` says which of them "
        "every rate is run with. With fewer than three nothing is clear.",
    )
    measure: MeasureSection = Field(default_factory=MeasureSection)
    analysis: AnalysisSection = Field(default_factory=AnalysisSection)
