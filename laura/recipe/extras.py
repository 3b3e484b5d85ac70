"""Further measurements of a recipe: several samples of every answer, where one says too little.

Diversity and pass@k need them. They are measured on the base and on each arm's best rate
only, after everything else, since fifty answers take fifty times as long as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from laura.recipe.section import Section

EXTRA_TASKS = ("humaneval", "mbpp", "micro_code", "gsm8k", "micro_math")


class Extra(Section):
    """Several samples of every answer of a generation task; defaults are the paper's."""

    task: Literal["humaneval", "mbpp", "micro_code", "gsm8k", "micro_math"] = Field(
        description="What is answered, asked as the `measure` section says."
    )
    samples: int = Field(
        50, ge=2, le=10_000, description="Answers drawn to every item, with the same seeds for all."
    )
    temperature: float = Field(
        0.2, gt=0, description="The paper draws 50 at 0.2 for diversity, 256 at 0.8 for pass@k."
    )
    top_p: float = Field(
        0.95, gt=0, le=1, description="Share of likely tokens that is drawn from; 1 for all."
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1],
        description="pass@k for these k, each at most `samples`; 1 is always told.",
    )
    at: Literal["last", "all"] = Field(
        "last", description="Budget points: the largest, or all, of every seed at the best rate."
    )
    limit: int | None = Field(None, ge=2, description="Items; null for `measure.limit`.")

    def code_settings(self) -> dict[str, Any]:
        """The keys of the `measure` section that say the same for tasks of programs."""
        return {
            "code_samples": self.samples,
            "code_temperature": self.temperature,
            "code_top_p": self.top_p,
            "code_k": list(self.k),
        }


def pass_names(k: Iterable[int]) -> tuple[str, ...]:
    """Names of the metrics pass@k, rising; 1 is always among them."""
    return tuple(f"pass@{one}" for one in sorted({1, *k}))


def k_problem(k: Sequence[int], samples: int, where: str) -> str:
    """What is wrong with a list of k for so many samples; empty where nothing is.

    Args:
        k: The list.
        samples: How many answers are drawn.
        where: The key that says how many.
    """
    too_large = [one for one in k if one > samples]
    if too_large:
        return (
            f"names {', '.join(map(str, too_large))}, but pass@k needs at least k samples and "
            f"{where} is {samples}; draw more or leave it out"
        )
    return f"names a k twice, came {list(k)!r:.60}" if len(set(k)) != len(k) else ""
