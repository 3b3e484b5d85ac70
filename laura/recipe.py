"""A recipe: what is compared, on which data, and how it is measured.

Every default lives here and nowhere else. Each part of Laura receives its own
section, never the whole recipe. Reading YAML, overriding and gathering faults
is in `recipe_reading.py`.

Source of the numbers: learning-rate ranges and alpha = 2r follow Biderman et
al. 2024, arXiv:2405.09673; they are ranges to search, not constants.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from laura.recipe_tasks import FORGETTING, LEARNING, NAME_PATTERN, check_task, task_schema

LearningTask = Annotated[
    str,
    AfterValidator(functools.partial(check_task, known=LEARNING)),
    WithJsonSchema(task_schema(LEARNING)),
]
ForgettingTask = Annotated[
    str,
    AfterValidator(functools.partial(check_task, known=FORGETTING)),
    WithJsonSchema(task_schema(FORGETTING)),
]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys, wrong types and infinities are faults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


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


class FullArm(Section):
    """Full finetuning: every weight is trained."""

    method: Literal["full"] = Field(description="full")
    learning_rates: list[Rate] = Field(
        default=[1e-5, 3e-5, 1e-4],
        min_length=1,
        description="Rates to try, about a tenth of LoRA's.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled decay of the weights toward zero."
    )


class LoraArm(Section):
    """LoRA: low-rank updates beside frozen weights."""

    method: Literal["lora"] = Field(description="lora")
    learning_rates: list[Rate] = Field(
        default=[1e-4, 3e-4, 1e-3],
        min_length=1,
        description="Rates to try, about ten times full's.",
    )
    rank: int = Field(16, ge=1, description="Rank r of every update.")
    alpha: float | None = Field(None, gt=0, description="Scale numerator; null means 2r.")
    rslora: bool = Field(False, description="Scale by alpha/sqrt(r) instead of alpha/r.")
    targets: Literal["all", "mlp", "attention"] | list[str] = Field(
        "all", description="Linear maps that get an update: a group, or module names."
    )
    dropout: Share = Field(0.0, description="Dropout on the input of the update.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of A and B toward zero.")

    @property
    def alpha_value(self) -> float:
        """Alpha with the rule alpha = 2r filled in (Biderman et al. 2024)."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


Arm = Annotated[FullArm | LoraArm, Field(discriminator="method")]


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


class SearchSection(Section):
    """How learning rates are chosen."""

    sampler: Literal["grid"] = Field("grid", description="Every rate of every arm is run.")
    allow_shared_rate: bool = Field(
        False,
        description="Accept arms compared at one and the same rate. It misleads: the best LoRA "
        "rate is about ten times the best full rate.",
    )


# Values of keys that a preset stands for; what the recipe says itself wins.
PRESETS: dict[str, dict[str, Any]] = {
    # Biderman et al. 2024, arXiv:2405.09673, and the harnesses it names (lm-eval, BigCode).
    "paper": {
        "forgetting": ["hellaswag", "arc_challenge", "winogrande"],
        "limit": None,
        "gsm8k_shots": 5,
        "gsm8k_prompt": "plain",
        "gsm8k_sampler": "sampled",
        "gsm8k_tokens": 256,
        "code_prompt": "plain",
        "code_samples": 50,
        "code_temperature": 0.2,
        "code_top_p": 0.95,
        "code_tokens": 512,
        "code_k": [1],
    },
    "quick": {
        "forgetting": ["hellaswag", "arc_challenge", "winogrande"],
        "limit": 200,
        "subset": "random",
        "gsm8k_sampler": "first",
        "code_samples": 1,
        "code_temperature": 0.0,
    },
}


class MeasureSection(Section):
    """What is measured at every budget point, on the base first."""

    preset: Literal["paper", "quick"] | None = Field(
        None,
        description="Values for the keys below that are not given. `paper`: whole benchmarks; "
        "HumanEval 50 samples at T=0.2, top-p 0.95; GSM8K 5-shot greedy; forgetting is the mean "
        "of HellaSwag, ARC-Challenge and WinoGrande. `quick`: the same 200 random items of each "
        "every time, one greedy program; a share of 200 has a standard error of up to 3.5 points.",
    )
    learning: list[LearningTask] = Field(
        default=["target_loss"],
        min_length=1,
        description="Target scores; the first one leads. "
        "Also `lm_eval:NAME`, any task of lm-eval, and the path of your own task file (.yaml, "
        ".py), from the working directory or the data folder.",
    )
    forgetting: list[ForgettingTask] = Field(
        default=["source_loss", "kl"],
        min_length=1,
        description="Scores of what the base could do; their shares of right answers are averaged. "
        "Also `lm_eval:NAME`, any task of lm-eval, and the path of your own task file (.yaml, "
        ".py), from the working directory or the data folder.",
    )
    limit: int | None = Field(200, ge=2, description="Items of each benchmark; null for all.")
    subset: Literal["first", "random"] = Field(
        "first",
        description="Which items `limit` leaves: the first, or random ones, the same every time.",
    )
    loss_documents: int = Field(200, ge=2, description="Documents of each held-out loss.")
    loss_tokens: int = Field(
        512, ge=8, description="A held-out document is cut to this many tokens."
    )
    gsm8k_shots: int = Field(5, ge=0, le=8, description="Worked examples before a GSM8K question.")
    gsm8k_prompt: Literal["plain", "chat"] = Field(
        "plain",
        description="`plain`: lm-eval's prompt, `Question: ...` and `Answer:`; `chat`: the "
        "question alone in the model's chat template, as instruct training shows it, worked "
        "examples as earlier turns.",
    )
    gsm8k_sampler: Literal["first", "sampled"] = Field(
        "first",
        description="`first`: the same first training rows for every question (lm-eval's "
        "`sampler: first_n`), read once; `sampled`: lm-eval's default, others for every question.",
    )
    gsm8k_tokens: int = Field(256, ge=1, description="New tokens allowed for a GSM8K answer.")
    code_prompt: Literal["plain", "chat"] = Field(
        "plain",
        description="How humaneval and mbpp are asked. `plain`: lm-eval's prompts, continued; "
        "`chat`: the task in the model's chat template, code taken out of the answer.",
    )
    code_samples: int = Field(
        1, ge=1, le=10_000, description="Programs drawn for every task of humaneval and mbpp."
    )
    code_temperature: float = Field(
        0.0, ge=0, description="0 writes the most likely program; the paper draws 50 at 0.2."
    )
    code_top_p: float = Field(
        0.95, gt=0, le=1, description="Share of likely tokens programs are drawn from; 1 for all."
    )
    code_k: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1],
        description="pass@k for these k, each at most `code_samples`; 1 is always told.",
    )
    code_tokens: int = Field(512, ge=1, description="New tokens allowed for a program.")
    mbpp_shots: int = Field(
        3, ge=0, le=9, description="Worked examples before an MBPP task: its prompt rows 2, 3, ..."
    )
    micro_prompt: Literal["chat", "text"] = Field(
        "chat",
        description="How micro_math and micro_code are asked. `chat`: in the model's chat "
        "template, as instruct training shows them; `text`: as they stand in running text.",
    )
    engine: Literal["laura", "vllm"] = Field(
        "laura",
        description="What answers in `laura evaluate`: Laura's own engine, or vLLM in a process "
        "of its own (LAURA_VLLM_PYTHON names the Python that has it).",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "fp32", description="Arithmetic of the evaluation; fp32 matches lm-eval to 1e-3 nats."
    )
    lm_eval_include: str | None = Field(
        None,
        description="Folder of your own lm-eval task files, for tasks named `lm_eval:NAME`; they "
        "win over lm-eval's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        known = isinstance(value, dict) and isinstance(value.get("preset"), str)
        return {**PRESETS.get(value["preset"], {}), **value} if known else value


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
