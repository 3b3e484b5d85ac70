"""Confirming a configuration: an arm at a rate, run with seeds that had no part in its choice.

What one seed chose among many is flattered by the choice. Fresh seeds are not: their scores
say what the configuration does, whatever the grid was (`Evidence.confirming`). No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from laura.recipe.search import reachable_rates
from laura.recipe.sections import Recipe
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.study.evidence import Evidence

FRESH_SEEDS = 3
Configuration = tuple[str, float]  # arm and peak rate


def read_configurations(texts: Sequence[str]) -> list[Configuration]:
    """What `--confirm ARM@RATE` was given, in order, each once.

    Raises:
        UsageError: one is not written so.
    """
    found = []
    for text in texts:
        arm, _, rate = text.rpartition("@")
        try:
            found.append((arm, float(rate)))
        except ValueError:
            arm = ""
        if not arm:
            raise UsageError(
                f"--confirm wants an arm and a learning rate, as in --confirm full@2.5e-4; "
                f"came {text!r}"
            )
    return list(dict.fromkeys(found))


def check_configurations(wanted: Sequence[Configuration], seeds: int, recipe: Recipe) -> None:
    """Find what can never be confirmed in a study of this recipe, before anything is run.

    Raises:
        UsageError: no such arm or rate, or an arm made elsewhere; what is allowed is told.
    """
    if seeds < 1:
        raise UsageError(f"--confirm-seeds must be at least 1, came {seeds}")
    for arm, rate in wanted:
        what = f"--confirm {arm}@{rate:g}"
        if arm not in recipe.arms:
            raise UsageError(f"{what}: the recipe has no such arm; it has {', '.join(recipe.arms)}")
        given = recipe.arms[arm]
        if given.external is not None:
            raise UsageError(f"{what}: its checkpoints were made elsewhere, so none can be added")
        if recipe.search.sampler == "grid":
            allowed = reachable_rates(given, recipe.search)
            if rate not in allowed:
                raise UsageError(f"{what}: {arm} is run at {_listed(allowed)}; give one of these")
        elif not min(given.learning_rates) <= rate <= max(given.learning_rates):
            ends = f"{min(given.learning_rates):g} and {max(given.learning_rates):g}"
            raise UsageError(f"{what}: rates of {arm} are drawn between {ends}; give one that was")


def check_run(wanted: Sequence[Configuration], evidence: Evidence) -> None:
    """Refuse a rate that the study could have come to and did not.

    Raises:
        UsageError: as said; the rates that were run are told.
    """
    for arm, rate in wanted:
        if rate not in evidence.rates(arm):
            rates = _listed(evidence.rates(arm)) or "no rate"
            raise UsageError(
                f"--confirm {arm}@{rate:g}: {arm} was run at {rates}; confirm one of these"
            )


def fresh_seeds(recipe: Recipe, count: int) -> list[int]:
    """The smallest seeds that are not the recipe's."""
    unused = (seed for seed in itertools.count() if seed not in recipe.seeds)
    return list(itertools.islice(unused, count))


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
