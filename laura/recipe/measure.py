"""The `measure` section of a recipe, and the presets that stand for groups of its keys."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from laura.recipe.extras import Extra
from laura.recipe.section import Section
from laura.recipe.tasks import FORGETTING, LEARNING, NAME_PATTERN, check_task, task_schema

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
    extras: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Extra] = Field(
        default={},
        description="Further measurements by name, for diversity and pass@k: several samples of "
        "every answer, on the base and on each arm's best rate. They may be added to a study "
        "that stands.",
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
