"""How much a recipe asks for: runs, tokens, operations, files. No torch.

Counts follow `Session.specs` and `train/schedules.py`; steps are taken to hold exactly
`train.batch_tokens`, so tokens are right to a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from laura.recipe.search import families_of, grid_seeds, rates_beyond
from laura.recipe.sections import Arm, LoraArm, Recipe
from laura.study.plan_arms import (
    FLOAT32,
    adapted_maps,
    checkpoint_bytes,
    first_trained,
    lockstep_runs,
    start_numbers,
    trainable_parameters,
    trains_all,
)
from laura.study.plan_data import Survey
from laura.study.plan_evaluation import answers_of
from laura.study.plan_memory import OPTIMISER_STATE
from laura.study.plan_shapes import Shapes
from laura.training.schedules import longest_warmup, plan_legs
from laura.training.work import TrainingWork, training_flops

# Of data/corpus.py: an example's entry in records.bin and digests.bin.
EXAMPLE_BYTES = 120
NARROW_VOCABULARY = 65_536
NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ArmWork:
    """What one arm takes in a whole study.

    Attributes:
        runs: Of the grid or search and of the further seeds; none where it was made elsewhere.
        longer: Runs that come on top where its list of rates grows; at most.
        models: Checkpoints that are measured.
        steps: Optimiser steps to each budget point of one run; None where unknown.
        tokens: Trained in all its runs, cooldown branches counted; None where unknown.
        flops: Of these.
        checkpoint_bytes: Weights that stay.
        resume_bytes: States of the runs that train together, while they do.
    """

    runs: int
    longer: int
    models: int
    steps: list[int] | None
    tokens: int | None
    flops: int | None
    checkpoint_bytes: int
    resume_bytes: int


def budget_tokens(recipe: Recipe, survey: Survey, replay: float = 0.0) -> list[int] | None:
    """The budget points in tokens; None where an epoch's tokens are not known.

    Budgets in tokens count what is replayed; an epoch is a pass over the target, and replay
    comes on top: 1/(1 - replay) as many.
    """
    if recipe.budget.tokens is not None:
        return list(recipe.budget.tokens)
    if survey.epoch_tokens is None:
        return None
    each = survey.epoch_tokens / (1 - replay)
    return [round(epochs * each) for epochs in recipe.budget.epochs or []]


def runs_of(recipe: Recipe, points: list[int]) -> list[list[int]]:
    """Budget points of each run that one arm, rate and seed takes; as `Session.specs`."""
    apart = recipe.budget.points == "separate" and recipe.train.schedule == "cosine"
    return [[point] for point in points] if apart else [points]


def each_of(recipe: Recipe) -> int:
    """Runs that one arm, rate and seed takes."""
    return len(runs_of(recipe, [0] * len(recipe.budget.tokens or recipe.budget.epochs or [])))


def further_seeds(recipe: Recipe) -> list[int]:
    """The seeds that are run at each arm's best rate alone."""
    return recipe.seeds[len(grid_seeds(recipe.seeds, recipe.search)) :]


def room_for_warmup(recipe: Recipe, steps: list[int]) -> int:
    """Most steps of warm-up after which each run still reaches its rate.

    Args:
        recipe: The recipe.
        steps: Of each budget point, rising.
    """
    hot = recipe.budget.points == "hot"
    return min(longest_warmup(plan_legs(recipe.train, run, hot)) for run in runs_of(recipe, steps))


def trained_tokens(recipe: Recipe, points: list[int]) -> int:
    """Tokens that one arm, rate and seed trains: its runs, or a trunk with its branches.

    A trapezoidal schedule forks before each point and trains the last share of it again
    (Biderman et al. 2024: the last 20 % of each smaller budget).
    """
    if recipe.budget.points == "hot":
        return points[-1]
    step = recipe.train.batch_tokens
    total = 0
    for run in runs_of(recipe, points):
        steps = [ceil(point / step) for point in run]
        total += sum(leg.end - leg.start for leg in plan_legs(recipe.train, steps)) * step
    return total


def work_of(shapes: Shapes, arm: Arm) -> TrainingWork:
    """Operations a token takes, counted from shapes as `flops.count_work` counts them."""
    each = shapes.layer_elements
    below = first_trained(shapes, arm)
    if isinstance(arm, LoraArm):
        adapted = sum(o + i for _, (o, i) in adapted_maps(shapes, arm))
        trained = arm.rank * adapted
        frozen = (shapes.layers - below) * each + start_numbers(shapes, arm)
    else:
        count = shapes.layers if arm.layers is None else len(arm.layers)
        trained, frozen = count * each, (shapes.layers - below - count) * each
    return TrainingWork(
        frozen,
        trained,
        shapes.head_elements,
        trains_all(arm),
        shapes.queries * shapes.layers,
        below * each,
        shapes.queries * below,
    )


def tries_of(recipe: Recipe) -> dict[str, int]:
    """Rates that each arm is tried at: its grid, or its search's trials.

    Which arm of a family a trial takes is known when it is asked for; here they are dealt
    evenly. A family of one arm with one rate has one trial, as `study/trials.py` has it.
    """
    arms = {name: arm for name, arm in recipe.arms.items() if arm.external is None}
    if recipe.search.sampler == "grid":
        return {name: len(arm.learning_rates) for name, arm in arms.items()}
    tries: dict[str, int] = {}
    for family in families_of(recipe.arms, recipe.search.families):
        members = list(family.arms.values())
        alone = family.low == family.high and len(members) == 1
        trials = 1 if alone else recipe.search.trials
        for place, name in enumerate(members):
            tries[name] = len(range(place, trials, len(members)))
    return {name: tries[name] for name in arms}


def arm_work(recipe: Recipe, name: str, shapes: Shapes, survey: Survey, number: int) -> ArmWork:
    """What one arm takes: its tries with the seeds of the grid, its best rate with the others.

    Args:
        recipe: The recipe.
        name: One of its arms.
        shapes: The base's.
        survey: What is known of the data.
        number: Bytes of a weight of the base.
    """
    arm = recipe.arms[name]
    if arm.external is not None:
        return ArmWork(0, 0, len(arm.external), None, 0, 0, 0, 0)
    tries = tries_of(recipe)[name]
    often = len(grid_seeds(recipe.seeds, recipe.search))
    times = tries * often + len(further_seeds(recipe)) if tries else 0
    below, above = rates_beyond(arm, recipe.search)
    steps_beyond = min(recipe.search.extend, len(below) + len(above))
    points = budget_tokens(recipe, survey, arm.replay)
    count = len(recipe.budget.tokens or recipe.budget.epochs or [])
    each = each_of(recipe)
    tokens = flops = steps = None
    if points is not None:
        tokens = times * trained_tokens(recipe, points)
        labelled = round(tokens * survey.learnt_share(arm.replay))
        pairs = round(tokens * (survey.document_tokens + 1) / 2)
        flops = training_flops(work_of(shapes, arm), tokens, labelled, pairs)
        steps = [ceil(point / recipe.train.batch_tokens) for point in points]
    kept = trainable_parameters(shapes, arm) * (FLOAT32 if isinstance(arm, LoraArm) else number)
    # A trunk's state waits for its next stretch while a branch writes its own.
    states = 2 if recipe.train.schedule == "trapezoidal" and count > 1 else 1
    state = kept * (1 + OPTIMISER_STATE[recipe.train.optimiser][0])
    state += start_numbers(shapes, arm) * FLOAT32
    return ArmWork(
        runs=times * each,
        longer=steps_beyond * often * each,
        models=times * count,
        steps=steps,
        tokens=tokens,
        flops=flops,
        checkpoint_bytes=times * count * checkpoint_bytes(shapes, arm, number),
        resume_bytes=states * state * lockstep_runs(recipe, arm),
    )


def totals(recipe: Recipe, shapes: Shapes, known: Survey) -> dict[str, Any]:
    """Runs, tokens, operations and bytes on the disk of a whole study."""
    number = NUMBER_BYTES[recipe.base.dtype]
    works = [arm_work(recipe, name, shapes, known, number) for name in recipe.arms]
    flops = [work.flops for work in works if work.flops is not None]
    whole = len(flops) == len(works)
    measured = 1 + sum(work.models for work in works)
    asked = answers_of(recipe, measured)
    elsewhere = sum(
        len(arm.external) * checkpoint_bytes(shapes, arm, number)
        for arm in recipe.arms.values()
        if arm.external is not None
    )
    disk = {
        "checkpoints": sum(work.checkpoint_bytes for work in works),
        "resume": max(work.resume_bytes for work in works),
        "corpus": corpus_bytes(recipe, shapes, known),
        "samples": asked.sample_bytes,
        "elsewhere": elsewhere,
    }
    return {
        "runs": sum(work.runs for work in works),
        "longer": sum(work.longer for work in works),
        "tokens": sum(work.tokens or 0 for work in works) if whole else None,
        "flops": sum(flops) if whole else None,
        "evaluation": {
            "models": measured,
            "answers": asked.answers,
            "generated_tokens": asked.tokens,
            "flops": 2 * asked.tokens * (shapes.map_elements + shapes.head_elements),
        },
        "disk": {**disk, "all": sum(size or 0 for size in disk.values())},
    }


def corpus_bytes(recipe: Recipe, shapes: Shapes, survey: Survey) -> int | None:
    """Bytes of STUDY/corpus and of what is replayed: tokens, marks, and 120 an example."""
    tokens, examples = survey.epoch_tokens, survey.examples
    if tokens is None and recipe.budget.tokens:
        tokens = recipe.budget.tokens[-1]
        examples = round(tokens / survey.document_tokens)
    if tokens is None or examples is None:
        return None
    tokens, examples = (
        tokens + (survey.replay_tokens or 0),
        examples + (survey.replay_examples or 0),
    )
    wide = 2 if shapes.vocabulary <= NARROW_VOCABULARY else 4
    return tokens * (wide + (recipe.regime == "instruct")) + examples * EXAMPLE_BYTES
