"""The `search` section of a recipe, the rates a list may grow to, and families of arms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from laura.recipe.arms import Arm, value_words
from laura.recipe.section import Count, NotNegative, Section, Seed

RATE_DIGITS = 3  # significant digits of a rate that Laura itself thinks of


class SearchSection(Section):
    """How learning rates are chosen, and the values of an arm's `grid`."""

    sampler: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every rate of every arm is run. `random`, `tpe` (Optuna's): rates are drawn between
    the lowest and the highest of `learning_rates`, evenly in their logarithm or where earlier
    trials did well, and with them the values of the arm's grid."""
    seeds: Literal["all", "first"] | None = None
    """`all`: every rate of every arm is run with every seed, and the best is chosen for each seed
    by itself, so that the luck of the choice is in the error. `first`: every rate with the first
    seed, the others at the rate that is best there; cheaper, but then no verdict says more than
    `suggested`. Null: all for grid, first for a search."""
    extend: int = Field(3, ge=0)
    """A grid's list of rates whose best (with any seed) lies at its end grows there by the ratio
    of the last two, at most so many rates at both ends together; 0: never. Lists of one rate and
    checkpoints made elsewhere stay as they are."""
    trials: Count = 20
    """Trials of each arm, or of each family of arms a grid makes."""
    seed: Seed = 0
    """Seed of the sampler."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Stops a trial whose validation loss at an early budget point is worse than the median's, or
    drops out of Hyperband's round; needs several budget points."""
    objective: Literal["validation_loss", "learning"] | None = None
    """What the best rate is best at. `validation_loss`: on held-out rows that no score is told
    on. `learning`: the change of the leading learning score itself, which flatters the arm chosen
    by it. Null: validation_loss for grid, learning for a search."""
    max_forgetting: NotNegative | None = None
    """A rate is chosen only if the arm forgot at most so much: the fall of the mean of the
    forgetting accuracies (0.05 is five points), or where none is measured, how much worse the
    first forgetting score became. Null for no bound."""
    families: dict[str, list[str]] = Field({})
    """Arms that are searched together; a `grid` writes this by itself."""
    allow_shared_rate: bool = False
    """Accept arms compared at one and the same rate. It misleads: the best LoRA rate is about ten
    times the best full rate."""

    @property
    def objective_value(self) -> str:
        """The objective with its default filled in."""
        return self.objective or ("validation_loss" if self.sampler == "grid" else "learning")

    @property
    def seeds_value(self) -> Literal["all", "first"]:
        """Which seeds every rate is run with, the default filled in."""
        return self.seeds or ("all" if self.sampler == "grid" else "first")

    def faults(self) -> Iterable[tuple[str, str]]:
        """Seeds that a search cannot be run with."""
        if self.seeds == "all" and self.sampler != "grid":
            yield (
                "seeds",
                f"is all, but search.sampler is {self.sampler}, whose trials are drawn by what the "
                "first seed came to and so stand for no other; set search.seeds: first, or leave "
                "it out, or set search.sampler: grid",
            )


def rates_beyond(arm: Arm, search: SearchSection) -> tuple[list[float], list[float]]:
    """The rates that an arm's list may grow by below and above, nearest first.

    The step at an end is the ratio of the two rates there; rates are rounded to three
    significant digits, and none is above 1, the highest there is.
    """
    rates = sorted(arm.learning_rates)
    if search.sampler != "grid" or arm.external is not None or len(rates) < 2:
        return [], []
    ends = ((rates[0], rates[0] / rates[1]), (rates[-1], rates[-1] / rates[-2]))
    below, above = (_steps(end, ratio, search.extend) for end, ratio in ends)
    return below, above


def _steps(end: float, ratio: float, most: int) -> list[float]:
    found = [end]
    for step in range(1, most + 1):
        rate = float(f"{end * ratio**step:.{RATE_DIGITS}g}")
        # Of a list in steps finer than the rounding nothing may be left.
        if not 0 < rate <= 1 or (rate - found[-1]) * (ratio - 1) <= 0:
            break
        found.append(rate)
    return found[1:]


def reachable_rates(arm: Arm, search: SearchSection) -> list[float]:
    """Every rate of a grid that an arm may come to be run at, rising."""
    below, above = rates_beyond(arm, search)
    return sorted({*below, *arm.learning_rates, *above})


def grid_seeds(seeds: Sequence[int], search: SearchSection) -> list[int]:
    """The seeds of a recipe that every rate is run with."""
    return list(seeds if search.seeds_value == "all" else seeds[:1])


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
