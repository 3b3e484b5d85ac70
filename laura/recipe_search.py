"""The `search` section of a recipe, and the families of arms that are searched together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from laura.recipe_arms import Arm
from laura.recipe_section import Section


class SearchSection(Section):
    """How learning rates are chosen, and the values of an arm's `grid`."""

    sampler: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="`grid`: every rate of every arm is run. `random`, `tpe` (Optuna's): rates "
        "are drawn between the lowest and the highest of `learning_rates`, evenly in their "
        "logarithm or where earlier trials did well, and with them the values of the arm's grid.",
    )
    trials: int = Field(
        20, ge=1, description="Trials of each arm, or of each family of arms a grid makes."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the sampler.")
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none",
        description="Stops a trial whose validation loss at an early budget point is worse than "
        "the median's, or drops out of Hyperband's round; needs several budget points.",
    )
    objective: Literal["validation_loss", "learning"] | None = Field(
        None,
        description="What the best rate is best at. `validation_loss`: on held-out rows that no "
        "score is told on. `learning`: the change of the leading learning score itself, which "
        "flatters the arm chosen by it. Null: validation_loss for grid, learning for a search.",
    )
    max_forgetting: float | None = Field(
        None,
        ge=0,
        description="A rate is chosen only if the arm forgot at most so much: the fall of the "
        "mean of the forgetting accuracies (0.05 is five points), or where none is measured, how "
        "much worse the first forgetting score became. Null for no bound.",
    )
    families: dict[str, list[str]] = Field(
        default={},
        description="Arms that are searched together; a `grid` writes this by itself.",
    )
    allow_shared_rate: bool = Field(
        False,
        description="Accept arms compared at one and the same rate. It misleads: the best LoRA "
        "rate is about ten times the best full rate.",
    )

    @property
    def objective_value(self) -> str:
        """The objective with its default filled in."""
        if self.objective is not None:
            return self.objective
        return "validation_loss" if self.sampler == "grid" else "learning"


@dataclass(frozen=True)
class Family:
    """Arms that share one search: an arm of the recipe with its grid, or an arm alone.

    Attributes:
        name: Its name in the recipe.
        parameters: The settings its arms differ in, each with its values as words.
        arms: Name of the arm for each combination of those words, in order.
        low: Lowest learning rate.
        high: Highest learning rate.
    """

    name: str
    parameters: dict[str, list[str]]
    arms: dict[tuple[str, ...], str]
    low: float
    high: float


def families_of(arms: Mapping[str, Arm], families: Mapping[str, list[str]]) -> list[Family]:
    """Every family of a recipe, in the order of its arms; an arm in none is one by itself.

    Raises:
        ValueError: the arms of a family do not form a grid, or not over the same rates.
    """
    of_arm = {arm: name for name, members in families.items() for arm in members}
    names = dict.fromkeys(of_arm.get(arm, arm) for arm in arms)
    return [_family(name, families.get(name, [name]), arms) for name in names]


def _family(name: str, members: list[str], arms: Mapping[str, Arm]) -> Family:
    rates = [sorted(arms[member].learning_rates) for member in members]
    if any(other != rates[0] for other in rates):
        raise ValueError("has arms with different learning_rates; make two families of them")
    without = {"learning_rates"}
    settings = [arms[member].model_dump(mode="json", exclude=without) for member in members]
    keys = [
        key
        for key in dict.fromkeys(itertools.chain.from_iterable(settings))
        if any(other.get(key) != settings[0].get(key) for other in settings)
    ]
    words = [tuple(value_words(one.get(key)) for key in keys) for one in settings]
    parameters = {
        key: list(dict.fromkeys(combination[place] for combination in words))
        for place, key in enumerate(keys)
    }
    if sorted(itertools.product(*parameters.values())) != sorted(words):
        raise ValueError(
            f"has arms that are no grid: {', '.join(keys)} must come in every combination, once"
        )
    return Family(
        name, parameters, dict(zip(words, members, strict=True)), rates[0][0], rates[0][-1]
    )


def value_words(value: Any) -> str:
    """A setting's value as it stands in an arm's name: 16, 0.05, mlp, q_proj.v_proj."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ".".join(map(value_words, value))
    return re.sub(r"[^A-Za-z0-9._-]", "-", str(value).removesuffix(".0"))
