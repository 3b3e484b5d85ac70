"""The arms of a recipe: ways of adapting the base that are compared.

Learning-rate ranges and alpha = 2r follow Biderman et al. 2024, arXiv:2405.09673; they
are ranges to search, not constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from laura.recipe.section import Rate, Section, Share

REPLAY = Field(
    0.0,
    description="Share of all training tokens that come from `data.replay`, the target's being "
    "the rest; give several arms different shares to sweep it.",
)


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

    later = frozenset({"external", "layers", "attention_dropout", "residual_dropout", "replay"})

    external: list[ExternalPoint] | None = Field(
        None,
        min_length=1,
        description="Checkpoints made elsewhere (TRL, Axolotl, Unsloth, ...): they are measured, "
        "nothing is trained. The arm's other settings say how they were made; those that the "
        "files show are checked.",
    )
    replay: Share = REPLAY
    grid: Grid = None
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="Decoder layers that are adapted or trained, counted from 0; null: all. "
        "With `full`, embeddings, last norm and output map then stay frozen too.",
    )
    attention_dropout: Share | None = Field(
        None,
        description="Dropout on the attention weights while training; null: as the base's "
        "config has it, which is 0 for Llama.",
    )
    residual_dropout: Share = Field(
        0.0,
        description="Dropout on what each attention and each MLP block adds to the residual "
        "stream, while training.",
    )

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

    def faults(self) -> Iterable[tuple[str, str]]:
        """Keys whose values do not go together, each with the reason."""
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            yield "layers", f"names a layer twice, came {self.layers}"


class FullArm(AnyArm):
    """Full finetuning: every weight is trained, or every weight of some layers."""

    later = AnyArm.later | {"weight_decay_toward"}

    method: Literal["full"] = Field(description="full")
    learning_rates: list[Rate] = Field(
        default=[1e-5, 3e-5, 1e-4],
        min_length=1,
        description="Rates to try, about a tenth of LoRA's.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled decay of the weights; see `train.weight_decay_rule`."
    )
    weight_decay_toward: Literal["zero", "base"] = Field(
        "zero",
        description="Where decay pulls the weights: to zero, or back to the base (L2-SP), which "
        "holds a second copy of the trained weights in memory.",
    )

    def faults(self) -> Iterable[tuple[str, str]]:
        """Keys whose values do not go together, each with the reason."""
        yield from super().faults()
        if self.weight_decay_toward == "base" and not self.weight_decay:
            yield (
                "weight_decay_toward",
                "is base, but nothing decays while weight_decay is 0; give it a value, such as "
                "1e-4, or leave weight_decay_toward out",
            )


class LoraArm(AnyArm):
    """LoRA: low-rank updates beside frozen weights."""

    later = AnyArm.later | {"lora_plus_ratio", "init", "dora"}

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
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Decoupled decay of A and B toward zero: toward the base, but with `init: "
        "pissa` away from it.",
    )
    lora_plus_ratio: float = Field(
        1.0, ge=1, description="LoRA+: rate of B as a multiple of A's; 1 is plain LoRA."
    )
    init: Literal["default", "pissa"] = Field(
        "default",
        description="How A and B start: `default`: A random, B zero; `pissa`: with the r leading "
        "singular directions of the weight, which is frozen without them. A checkpoint is a plain "
        "adapter on the base, of rank 2r.",
    )
    dora: bool = Field(False, description="DoRA: the length of every row of the weight is trained.")

    @property
    def alpha_value(self) -> float:
        """Alpha with the rule alpha = 2r filled in (Biderman et al. 2024)."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def faults(self) -> Iterable[tuple[str, str]]:
        """Keys whose values do not go together, each with the reason."""
        yield from super().faults()
        if self.targets == []:
            yield "targets", "is empty; name a module or use all, mlp, attention"
        if self.dora and self.init == "pissa":
            yield (
                "init",
                "is pissa, which does not go with dora: PEFT's conversion to an adapter on the "
                "base loses the trained lengths; choose one of the two",
            )


Arm = Annotated[FullArm | LoraArm, Field(discriminator="method")]
