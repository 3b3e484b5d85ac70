"""What a search works on: the rates a list may grow to, and families of arms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laura.recipe.sections import Arm, SearchSection, value_words

RATE_DIGITS = 3  # significant digits of a rate that Laura itself thinks of


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
