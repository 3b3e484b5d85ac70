"""The `measure` section of a recipe, its further measurements, and its presets."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from laura.recipe.section import Count, Positive, Section, twice
from laura.recipe.tasks import (
    FORGETTING,
    LEARNING,
    NAME_PATTERN,
    TAKEN,
    check_task,
    result_name,
    task_schema,
)

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
TopP = Annotated[float, Field(gt=0, le=1)]
MOST_SAMPLES = 10_000

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


class Extra(Section):
    """Several samples of every answer of a generation task; defaults are the paper's."""

    task: Literal["humaneval", "mbpp", "micro_code", "gsm8k", "micro_math"]
    """What is answered, asked as the `measure` section says."""
    samples: int = Field(50, ge=2, le=MOST_SAMPLES)
    """Answers drawn to every item, with the same seeds for all."""
    temperature: Positive = 0.2
    """The paper draws 50 at 0.2 for diversity, 256 at 0.8 for pass@k."""
    top_p: TopP = 0.95
    """Share of likely tokens that is drawn from; 1 for all."""
    k: list[Count] = Field([1])
    """pass@k for these k, each at most `samples`; 1 is always told."""
    at: Literal["last", "all"] = "last"
    """Budget points: the largest, or all, of every seed at the best rate."""
    limit: int | None = Field(None, ge=2)
    """Items; null for `measure.limit`."""

    def code_settings(self) -> dict[str, Any]:
        """The keys of the `measure` section that say the same for tasks of programs."""
        return {
            "code_samples": self.samples,
            "code_temperature": self.temperature,
            "code_top_p": self.top_p,
            "code_k": list(self.k),
        }

    def faults(self) -> Iterable[tuple[str, str]]:
        """A k for which too few samples are drawn."""
        return _k_faults(self.k, "k", self.samples, "samples")


class MeasureSection(Section):
    """What is measured at every budget point, on the base first."""

    preset: Literal["paper", "quick"] | None = None
    """Values for the keys below that are not given. `paper`: whole benchmarks; HumanEval 50
    samples at T=0.2, top-p 0.95; GSM8K 5-shot greedy; forgetting is the mean of HellaSwag,
    ARC-Challenge and WinoGrande. `quick`: the same 200 random items of each every time, one greedy
    program; a share of 200 has a standard error of up to 3.5 points."""
    learning: list[LearningTask] = Field(["target_loss"], min_length=1)
    """Target scores; the first one leads. Also `lm_eval:NAME`, any task of lm-eval, and the path
    of your own task file (.yaml, .py), from the working directory or the data folder."""
    forgetting: list[ForgettingTask] = Field(["source_loss", "kl"], min_length=1)
    """Scores of what the base could do; their shares of right answers are averaged. Also
    `lm_eval:NAME`, any task of lm-eval, and the path of your own task file (.yaml, .py), from the
    working directory or the data folder."""
    limit: int | None = Field(200, ge=2)
    """Items of each benchmark; null for all."""
    subset: Literal["first", "random"] = "first"
    """Which items `limit` leaves: the first, or random ones, the same every time."""
    loss_documents: int = Field(200, ge=2)
    """Documents of each held-out loss."""
    loss_tokens: int = Field(512, ge=8)
    """A held-out document is cut to this many tokens."""
    gsm8k_shots: int = Field(5, ge=0, le=8)
    """Worked examples before a GSM8K question."""
    gsm8k_prompt: Literal["plain", "chat"] = "plain"
    """`plain`: lm-eval's prompt, `Question: ...` and `Answer:`; `chat`: the question alone in the
    model's chat template, as instruct training shows it, worked examples as earlier turns."""
    gsm8k_sampler: Literal["first", "sampled"] = "first"
    """`first`: the same first training rows for every question (lm-eval's `sampler: first_n`),
    read once; `sampled`: lm-eval's default, others for every question."""
    gsm8k_tokens: Count = 256
    """New tokens allowed for a GSM8K answer."""
    code_prompt: Literal["plain", "chat"] = "plain"
    """How humaneval and mbpp are asked. `plain`: lm-eval's prompts, continued; `chat`: the task in
    the model's chat template, code taken out of the answer."""
    code_samples: int = Field(1, ge=1, le=MOST_SAMPLES)
    """Programs drawn for every task of humaneval and mbpp."""
    code_temperature: float = Field(0.0, ge=0)
    """0 writes the most likely program; the paper draws 50 at 0.2."""
    code_top_p: TopP = 0.95
    """Share of likely tokens programs are drawn from; 1 for all."""
    code_k: list[Count] = Field([1])
    """pass@k for these k, each at most `code_samples`; 1 is always told."""
    code_tokens: Count = 512
    """New tokens allowed for a program."""
    mbpp_shots: int = Field(3, ge=0, le=9)
    """Worked examples before an MBPP task: its prompt rows 2, 3, ..."""
    micro_prompt: Literal["chat", "text"] = "chat"
    """How micro_math and micro_code are asked. `chat`: in the model's chat template, as instruct
    training shows them; `text`: as they stand in running text."""
    extras: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Extra] = Field({})
    """Further measurements by name, for diversity and pass@k: several samples of every answer, on
    the base and on each arm's best rate, after everything else. They may be added to a study that
    stands."""
    engine: Literal["laura", "vllm"] = "laura"
    """What answers in `laura evaluate`: Laura's own engine, or vLLM in a process of its own
    (LAURA_VLLM_PYTHON names the Python that has it)."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """Arithmetic of the evaluation; fp32 matches lm-eval to 1e-3 nats."""
    lm_eval_include: str | None = None
    """Folder of your own lm-eval task files, for tasks named `lm_eval:NAME`; they win over
    lm-eval's."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        known = isinstance(value, dict) and isinstance(value.get("preset"), str)
        return {**PRESETS.get(value["preset"], {}), **value} if known else value

    def faults(self) -> Iterable[tuple[str, str]]:
        """Samples that cannot be told together, and results of one name."""
        samples = self.code_samples
        yield from _k_faults(self.code_k, "code_k", samples, "measure.code_samples")
        if samples > 1 and self.code_temperature == 0:
            yield (
                "code_temperature",
                f"is 0, so all {samples} samples would be the same program; give a temperature "
                "above 0, such as 0.2, or measure.code_samples: 1",
            )
        by_result: dict[str, list[str]] = {}
        for task in (*self.learning, *self.forgetting):
            by_result.setdefault(result_name(task), []).append(task)
        taken = {*TAKEN, "mean", *by_result}
        for name in filter(taken.__contains__, self.extras):
            problem = "is what a task's own result is called; give it another name"
            yield f"extras.{name}", problem
        for name, alike in by_result.items():
            if len(alike) > len(set(alike)):
                yield "", "names a task twice"
            elif len(alike) > 1:
                yield "", f"{' and '.join(alike)} would both be called {name}; rename a file"


def pass_names(k: Iterable[int]) -> tuple[str, ...]:
    """Names of the metrics pass@k, rising; 1 is always among them."""
    return tuple(f"pass@{one}" for one in sorted({1, *k}))


def _k_faults(
    k: Sequence[int], key: str, samples: int, samples_key: str
) -> Iterable[tuple[str, str]]:
    if problem := twice(k):
        yield key, problem
    too_large = [str(one) for one in k if one > samples]
    if too_large:
        yield (
            key,
            f"names {', '.join(too_large)}, but pass@k needs at least k samples and "
            f"{samples_key} is {samples}; draw more or leave it out",
        )
