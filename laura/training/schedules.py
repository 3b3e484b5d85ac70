"""Learning rate over time, and the legs a run is made of.

A run is one leg, except with a trapezoidal schedule and several budget points:
then one trunk at the full rate forks before each point, and each fork cools
down to zero over the last share of its budget. That is how the paper gets eight
budgets out of one 20 B run (Biderman et al. 2024, continued pretraining).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from laura.recipe.sections import TrainSection
from laura.results.errors import Fault, RecipeError


@dataclass(frozen=True)
class Leg:
    """A stretch of optimiser steps under one schedule.

    Attributes:
        name: Unique in its run; also the name of its resume folder.
        start: Steps already taken when it begins.
        end: Steps taken when it ends.
        origin: Leg whose final state it starts from; None for a fresh start.
        points: Step counts at which weights are kept.
        cooldown: Whether the rate falls to zero over this leg.
        length: Steps that a complete schedule of this leg spans (cosine).
        warmup: Steps of linear warm-up, counted from the run's start.
    """

    name: str
    start: int
    end: int
    origin: str | None
    points: tuple[int, ...]
    cooldown: bool
    length: int
    warmup: int


def plan_legs(section: TrainSection, points: list[int], hot: bool = False) -> list[Leg]:
    """The legs of a run that is measured after each of `points` steps (rising).

    Args:
        section: The recipe's `train`.
        points: Step counts at which weights are kept.
        hot: Whether the points before the last are snapshots of the longest run.
    """
    last = points[-1]
    if section.schedule != "trapezoidal":
        warmup = _warmup(section, last)
        return [Leg("main", 0, last, None, tuple(points), False, last, warmup)]
    if hot:
        return _hot_legs(section, points)
    legs: list[Leg] = []
    # The shortest budget must be past a share of warm-up when its cooldown starts.
    warmup = _warmup(section, points[0])
    origin, position = None, 0
    for number, point in enumerate(points, start=1):
        fork = point - max(1, round(section.cooldown * point)) if section.cooldown else point
        fork = max(fork, position)
        if fork > position:
            trunk = Leg(f"trunk-{number}", position, fork, origin, (), False, last, warmup)
            legs.append(trunk)
            origin, position = trunk.name, fork
        elif origin is None and point != last:
            # A budget that cools down from the first step on leaves nothing to go on from.
            legs.append(Leg("trunk-0", 0, 0, None, (), False, last, warmup))
            origin = "trunk-0"
        branch = Leg(f"branch-{number}", fork, point, origin, (point,), True, last, warmup)
        legs.append(branch)
    return legs


def _hot_legs(section: TrainSection, points: list[int]) -> list[Leg]:
    """One trunk and one cooldown; points within the last share are taken while it cools down."""
    last = points[-1]
    warmup = _warmup(section, last)
    fork = last - max(1, round(section.cooldown * last)) if section.cooldown else last
    early, late = (
        tuple(p for p in points if (p <= fork) is is_early) for is_early in (True, False)
    )
    legs = [Leg("trunk-1", 0, fork, None, early, False, last, warmup)] if fork else []
    if late:
        origin = legs[0].name if legs else None
        legs.append(Leg("branch-1", fork, last, origin, late, True, last, warmup))
    return legs


def rate_factor(section: TrainSection, leg: Leg, step: int) -> float:
    """Share of the peak rate used for the step that follows `step` finished ones.

    cosine: linear warm-up, then half a cosine from 1 to `final_factor`.
    constant: linear warm-up, then 1.
    trapezoidal: linear warm-up, 1 on the trunk, and on a branch linearly toward
    0, which it would reach one step after its last (Biderman et al. 2024). A branch
    that starts before the warm-up is over falls from the rate reached by then; the
    paper, whose warm-up is longer than its two smallest budgets, does not say.
    """
    if leg.cooldown and leg.start < leg.warmup:
        return (leg.start + 1) / leg.warmup * (leg.end - step) / (leg.end - leg.start)
    if step < leg.warmup:
        return (step + 1) / leg.warmup
    if section.schedule == "cosine":
        progress = (step - leg.warmup) / max(1, leg.length - leg.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return section.final_factor + (1 - section.final_factor) * wave
    if leg.cooldown:
        return (leg.end - step) / (leg.end - leg.start)
    return 1.0


def longest_warmup(legs: Sequence[Leg]) -> int:
    """Most steps of warm-up after which these legs still reach the peak rate."""
    return max(leg.start + 1 if leg.cooldown else leg.end for leg in legs if leg.end > leg.start)


def refuse_long_warmup(section: TrainSection, points: list[int], hot: bool = False) -> None:
    """Refuse a run that ends before its rate has risen to the one that is asked for.

    Args:
        section: The recipe's `train`.
        points: As for `plan_legs`.
        hot: As for `plan_legs`.

    Raises:
        RecipeError: the warm-up is longer than the run leaves room for.
    """
    most = longest_warmup(plan_legs(section, points, hot))
    if section.warmup_steps is not None and section.warmup_steps > most:
        problem = (
            f"is {section.warmup_steps}, but a run of {points[-1]} steps reaches its learning rate "
            f"with at most {most}; lower it, raise the budget, or leave it out for the share "
            "train.warmup"
        )
        raise RecipeError([Fault("train.warmup_steps", problem)])


def _warmup(section: TrainSection, steps: int) -> int:
    """Steps of warm-up of a schedule over so many."""
    return round(section.warmup * steps) if section.warmup_steps is None else section.warmup_steps
