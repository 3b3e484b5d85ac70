"""The arms of a recipe: ways of adapting the base that are compared.

Learning-rate ranges and alpha = 2r follow Biderman et al. 2024, arXiv:2405.09673; they
are ranges to search, not constants.

An arm with a `grid` stands for one arm a combination of its values. They are written out
as the recipe is validated, so that everything after that knows plain arms only.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from laura.recipe.section import (
    Count,
    NotNegative,
    Place,
    Positive,
    Rate,
    Section,
    Seed,
    Share,
    refuse,
    short,
    twice,
)

MOST_ARMS = 200
MOST_NAME = 64  # of tasks.NAME_PATTERN
NOT_IN_GRIDS = ("external", "grid", "learning_rates", "method")


class ExternalPoint(Section):
    """A checkpoint or adapter that was trained elsewhere."""

    model: str = Field(min_length=1)
    """Folder or Hub id of the checkpoint, or of the PEFT adapter."""
    revision: str | None = None
    """Hub branch, tag or commit; null for main."""
    budget: Positive
    """The point of `budget` it has reached."""
    learning_rate: Rate
    """The peak rate it was trained at."""
    seed: Seed = 0
    """The seed it was trained with."""


class AnyArm(Section):
    """What full finetuning and LoRA have in common."""

    later = frozenset({"external", "layers", "attention_dropout", "residual_dropout", "replay"})

    external: list[ExternalPoint] | None = Field(None, min_length=1)
    """Checkpoints made elsewhere (TRL, Axolotl, Unsloth, ...): they are measured, nothing is
    trained. The arm's other settings say how they were made; those that the files show are
    checked."""
    replay: Share = 0.0
    """Share of all training tokens that come from `data.replay`, the target's being the rest;
    give several arms different shares to sweep it."""
    grid: dict[str, list[Any]] | None = Field(None, exclude=True)
    """Lists of values for other keys of the arm, as in `rank: [4, 16]`: makes an arm of every
    combination, with names such as `lora-rank-4`."""
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """Decoder layers that are adapted or trained, counted from 0; null: all. With `full`,
    embeddings, last norm and output map then stay frozen too."""
    attention_dropout: Share | None = None
    """Dropout on the attention weights while training; null: as the base's config has it, which
    is 0 for Llama."""
    residual_dropout: Share = 0.0
    """Dropout on what each attention and each MLP block adds to the residual stream, while
    training."""

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

    @field_validator("grid", mode="before")
    @classmethod
    def _values_of_keys(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict) or not value:
            came = "an empty section" if value == {} else short(value)
            raise ValueError(f"must hold lists of values, as in rank: [4, 16], came {came}")
        known = _grid_of(cls).model_validate(value).model_dump(exclude_unset=True)
        return {key: known[key] for key in value}

    @property
    def rates_made(self) -> set[float]:
        """The rates of checkpoints made elsewhere."""
        return {point.learning_rate for point in self.external or []}

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
        for key in ("learning_rates", "layers"):
            if problem := twice(getattr(self, key) or []):
                yield key, problem


class FullArm(AnyArm):
    """Full finetuning: every weight is trained, or every weight of some layers."""

    later = AnyArm.later | {"weight_decay_toward"}

    method: Literal["full"]
    """full"""
    learning_rates: list[Rate] = Field([1e-5, 3e-5, 1e-4], min_length=1)
    """Rates to try, about a tenth of LoRA's."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of the weights; see `train.weight_decay_rule`."""
    weight_decay_toward: Literal["zero", "base"] = "zero"
    """Where decay pulls the weights: to zero, or back to the base (L2-SP), which holds a second
    copy of the trained weights in memory."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
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

    method: Literal["lora"]
    """lora"""
    learning_rates: list[Rate] = Field([1e-4, 3e-4, 1e-3], min_length=1)
    """Rates to try, about ten times full's."""
    rank: Count = 16
    """Rank r of every update."""
    alpha: Positive | None = None
    """Scale numerator; null means 2r."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r."""
    targets: Literal["all", "mlp", "attention"] | list[str] = "all"
    """Linear maps that get an update: a group, or module names."""
    dropout: Share = 0.0
    """Dropout on the input of the update."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of A and B toward zero: toward the base, but with `init: pissa` away from
    it."""
    lora_plus_ratio: float = Field(1.0, ge=1)
    """LoRA+: rate of B as a multiple of A's; 1 is plain LoRA."""
    init: Literal["default", "pissa"] = "default"
    """How A and B start: `default`: A random, B zero; `pissa`: with the r leading singular
    directions of the weight, which is frozen without them. A checkpoint is a plain adapter on
    the base, of rank 2r."""
    dora: bool = False
    """DoRA: the length of every row of the weight is trained."""

    @property
    def alpha_value(self) -> float:
        """Alpha with the rule alpha = 2r filled in (Biderman et al. 2024)."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
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


def _named_once(values: list[Any]) -> list[Any]:
    """Values whose names as parts of an arm's are different."""
    if problem := twice(map(value_words, values)):
        raise ValueError(problem)
    return values


@functools.cache
def _grid_of(kind: type[AnyArm]) -> type[Section]:
    """The grid of a kind of arm as a section: to each key a list of what the key may be."""
    lists: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name not in NOT_IN_GRIDS:
            one: Any = Annotated[field.annotation, Field(), *field.metadata]
            several = Annotated[list[one], Field(min_length=1), AfterValidator(_named_once)]
            lists[name] = (several, None)
    return create_model(f"{kind.__name__}Grid", __base__=Section, **lists)


def write_out_grids(arms: Mapping[str, Arm]) -> tuple[dict[str, Arm], dict[str, list[str]]]:
    """Plain arms, and for each arm that had a grid the names of those it stood for.

    Raises:
        ValidationError: every fault of what the grids make, each where the grid is written.
    """
    plain: dict[str, Arm] = {}
    families: dict[str, list[str]] = {}
    faults: dict[Place, str] = {}
    for name, arm in arms.items():
        if arm.grid is None:
            plain[name] = arm
            continue
        for key in arm.model_fields_set.intersection(arm.grid):
            faults[name, "grid", key] = "stands beside the grid too; keep one of them"
        count = math.prod(map(len, arm.grid.values()))
        if count > MOST_ARMS:
            faults[name, "grid"] = f"makes {count:,} arms, at most {MOST_ARMS}; shorten its lists"
            continue
        families[name] = []
        for values in itertools.product(*arm.grid.values()):
            chosen = dict(zip(arm.grid, values, strict=True))
            made = "-".join([name, *(f"{key}-{value_words(chosen[key])}" for key in chosen)])
            if len(made) > MOST_NAME:
                problem = f"the name {made}, at most {MOST_NAME} characters; shorten the arm's"
                faults.setdefault((name, "grid"), f"makes {problem}")
            elif made in arms or made in plain:
                problem = f"an arm called {made}, and there is another of that name; rename one"
                faults.setdefault((name, "grid"), f"makes {problem}")
            plain[made] = arm.model_copy(update={**chosen, "grid": None})
            families[name].append(made)
    if faults:
        refuse({("arms", *place): problem for place, problem in faults.items()})
    return plain, families


def value_words(value: Any) -> str:
    """A setting's value as it stands in an arm's name: 16, 0.05, mlp, q_proj.v_proj."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ".".join(map(value_words, value))
    return re.sub(r"[^A-Za-z0-9._-]", "-", str(value).removesuffix(".0"))
