"""The arms of a recipe: ways of adapting the base that are compared.

Learning-rate ranges and alpha = 2r follow Biderman et al. 2024, arXiv:2405.09673; they
are ranges to search, not constants.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from laura.recipe_section import Rate, Section, Share


def _written_out(value: dict[str, list[Any]] | None) -> None:
    if value is not None:
        raise ValueError("is written out when a recipe is read; here it must be arms of its own")


# Written out when a recipe is read (recipe_grids.py), so that no arm holds one afterwards.
Grid = Annotated[
    dict[str, list[Any]] | None,
    AfterValidator(_written_out),
    Field(
        exclude=True,
        description="Lists of values for other keys of the arm, as in `rank: [4, 16]`: makes an "
        "arm of every combination, with names such as `lora-rank-4`.",
    ),
]


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
    grid: Grid = None


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
    grid: Grid = None

    @property
    def alpha_value(self) -> float:
        """Alpha with the rule alpha = 2r filled in (Biderman et al. 2024)."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


Arm = Annotated[FullArm | LoraArm, Field(discriminator="method")]
