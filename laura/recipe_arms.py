"""The arms of a recipe: ways of adapting the base that are compared.

Learning-rate ranges and alpha = 2r follow Biderman et al. 2024, arXiv:2405.09673; they
are ranges to search, not constants.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from laura.recipe_section import Rate, Section, Share

REPLAY = Field(
    0.0,
    description="Share of all training tokens that come from `data.replay`, the target's being "
    "the rest; give several arms different shares to sweep it.",
)


class ExternalPoint(Section):
    """A checkpoint or adapter that was trained elsewhere."""

    model: str = Field(
        min_length=1, description="Folder or Hub id of the checkpoint, or of the PEFT adapter."
    )
    revision: str | None = Field(None, description="Hub branch, tag or commit; null for main.")
    budget: float = Field(gt=0, description="The point of `budget` it has reached.")
    learning_rate: Rate = Field(description="The peak rate it was trained at.")
    seed: int = Field(0, ge=0, lt=2**31, description="The seed it was trained with.")


class AnyArm(Section):
    """What full finetuning and LoRA have in common."""

    external: list[ExternalPoint] | None = Field(
        None,
        min_length=1,
        description="Checkpoints made elsewhere (TRL, Axolotl, Unsloth, ...): they are measured, "
        "nothing is trained. The arm's other settings say how they were made; those that the "
        "files show are checked.",
    )
    replay: Share = REPLAY

    @model_validator(mode="before")
    @classmethod
    def _rates_of_others(cls, value: Any) -> Any:
        """The rates of checkpoints made elsewhere stand with them."""
        points = value.get("external") if isinstance(value, dict) else None
        if not points or "learning_rates" in value or not isinstance(points, list):
            return value
        rates = [point.get("learning_rate") for point in points if isinstance(point, dict)]
        known = sorted({rate for rate in rates if isinstance(rate, int | float)})
        return {**value, "learning_rates": known} if known else value

    @property
    def rates_made(self) -> set[float]:
        """The rates of checkpoints made elsewhere."""
        return {point.learning_rate for point in self.external or []}


class FullArm(AnyArm):
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


class LoraArm(AnyArm):
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
