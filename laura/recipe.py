"""A recipe: what is compared, on which data, and how it is measured.

Every default lives in the files `recipe*.py` and nowhere else: the arms in
`recipe_arms.py`, the measures in `recipe_measure.py`, the search in
`recipe_search.py`, the rest here. Each part of Laura receives its own section, never
the whole recipe. Reading YAML, overriding and gathering faults is in
`recipe_reading.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from laura.recipe_arms import Arm, FullArm, LoraArm
from laura.recipe_measure import MeasureSection
from laura.recipe_search import SearchSection
from laura.recipe_section import Section, Share
from laura.recipe_tasks import NAME_PATTERN

__all__ = [
    "Arm",
    "BaseSection",
    "BudgetSection",
    "DataSection",
    "FullArm",
    "LoraArm",
    "MeasureSection",
    "Recipe",
    "SearchSection",
    "Section",
    "Source",
    "TrainSection",
]


class BaseSection(Section):
    """The model before adaptation."""

    model: str = Field(
        min_length=1,
        description="Registry name, Hub id, folder, or GGUF file of a Llama-type model.",
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit; null for main.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type the weights are held in; full finetuning wants float32."
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


class BudgetSection(Section):
    """How long each run trains; a checkpoint is measured at each point of the list."""

    tokens: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="Training tokens (all that pass through the model), rising."
    )
    epochs: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Passes over the training rows, rising; needs a finite source."
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

    optimiser: Literal["adamw", "lion"] = Field(
        "adamw", description="AdamW (fused) or decoupled Lion."
    )
    betas: Annotated[tuple[Share, Share], Field(strict=False)] | None = Field(
        None, description="Null: 0.9, 0.999 for adamw and 0.9, 0.95 for lion."
    )
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    schedule: Literal["cosine", "constant", "trapezoidal"] = Field(
        "cosine", description="Rate over time."
    )
    warmup: Share = Field(0.1, description="Share of the run spent warming up linearly.")
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
        default=[0, 1, 2], min_length=1, description="The grid uses the first; the best rate all."
    )
    measure: MeasureSection = Field(default_factory=MeasureSection)
