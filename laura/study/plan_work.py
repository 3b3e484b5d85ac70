"""How much a recipe asks for: runs, tokens, operations, files. No torch.

Counts follow `Session.specs` and `train/schedules.py`; steps are taken to hold exactly
`train.batch_tokens`, so tokens are right to a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from laura.recipe import Arm, LoraArm, Recipe
from laura.study.plan_data import Survey
from laura.study.plan_memory import FLOAT32, OPTIMISER_STATE, trainable_parameters
from laura.study.plan_shapes import Shapes
from laura.train.schedules import plan_legs
from laura.train.work import Work, training_flops

# Of data/corpus.py: an example's entry in records.bin and digests.bin.
EXAMPLE_BYTES = 120
NARROW_VOCABULARY = 65_536


@dataclass(frozen=True)
class ArmWork:
    """What one arm takes in a whole study.

    Attributes:
        runs: Of the grid and of the further seeds.
        tokens: Trained in all its runs, cooldown branches counted; None where unknown.
        flops: Of these.
        checkpoint_bytes: Weights that stay.
        resume_bytes: State of one run while it trains.
    """

    runs: int
    tokens: int | None
    flops: int | None
    checkpoint_bytes: int
    resume_bytes: int


def budget_tokens(recipe: Recipe, survey: Survey) -> list[int] | None:
    """The budget points in tokens; None where an epoch's tokens are not known."""
    if recipe.budget.tokens is not None:
        return list(recipe.budget.tokens)
    if survey.epoch_tokens is None:
        return None
    return [round(epochs * survey.epoch_tokens) for epochs in recipe.budget.epochs or []]


def runs_of(recipe: Recipe, points: list[int]) -> list[list[int]]:
    """Budget points of each run that one arm, rate and seed takes; as `Session.specs`."""
    apart = recipe.budget.points == "separate" and recipe.train.schedule == "cosine"
    return [[point] for point in points] if apart else [points]


def trained_tokens(recipe: Recipe, points: list[int]) -> int:
    """Tokens that one arm, rate and seed trains: its runs, or a trunk with its branches.

    A trapezoidal schedule forks before each point and trains the last share of it again
    (Biderman et al. 2024: the last 20 % of each smaller budget).
    """
    if recipe.budget.points == "hot" and recipe.train.schedule == "cosine":
        return points[-1]
    step = recipe.train.batch_tokens
    total = 0
    for run in runs_of(recipe, points):
        steps = [ceil(point / step) for point in run]
        total += sum(leg.end - leg.start for leg in plan_legs(recipe.train, steps)) * step
    return total


def work_of(shapes: Shapes, arm: Arm) -> Work:
    """Operations a token takes, counted from shapes as `flops.count_work` counts them."""
    if isinstance(arm, LoraArm):
        frozen, trained = shapes.map_elements, trainable_parameters(shapes, arm)
    else:
        frozen, trained = 0, shapes.map_elements
    attention = shapes.queries * shapes.layers
    head_trained = not isinstance(arm, LoraArm)
    return Work(frozen, trained, shapes.head_elements, head_trained, attention)


def arm_work(recipe: Recipe, arm: Arm, shapes: Shapes, survey: Survey, number: int) -> ArmWork:
    """What one arm takes: its grid with the first seed, its best rate with the others.

    Args:
        recipe: The recipe.
        arm: One of its arms.
        shapes: The base's.
        survey: What is known of the data.
        number: Bytes of a weight of the base.
    """
    times = len(arm.learning_rates) + len(recipe.seeds) - 1
    points = budget_tokens(recipe, survey)
    count = len(recipe.budget.tokens or recipe.budget.epochs or [])
    each = len(runs_of(recipe, [0] * count))
    tokens = flops = None
    if points is not None:
        tokens = times * trained_tokens(recipe, points)
        labelled = round(tokens * survey.learnt)
        pairs = round(tokens * (survey.document_tokens + 1) / 2)
        flops = training_flops(work_of(shapes, arm), tokens, labelled, pairs)
    trained = trainable_parameters(shapes, arm)
    size = trained * (FLOAT32 if isinstance(arm, LoraArm) else number)
    # A trunk's state waits for its next stretch while a branch writes its own.
    states = 2 if recipe.train.schedule == "trapezoidal" and count > 1 else 1
    moments = OPTIMISER_STATE[recipe.train.optimiser][0]
    return ArmWork(
        runs=times * each,
        tokens=tokens,
        flops=flops,
        checkpoint_bytes=times * count * size,
        resume_bytes=states * size * (1 + moments),
    )


def corpus_bytes(recipe: Recipe, shapes: Shapes, survey: Survey) -> int | None:
    """Bytes of STUDY/corpus: tokens, marks of what is learnt, and 120 an example."""
    tokens, examples = survey.epoch_tokens, survey.examples
    if tokens is None and recipe.budget.tokens:
        tokens = recipe.budget.tokens[-1]
        examples = round(tokens / survey.document_tokens)
    if tokens is None or examples is None:
        return None
    wide = 2 if shapes.vocabulary <= NARROW_VOCABULARY else 4
    return tokens * (wide + (recipe.regime == "instruct")) + examples * EXAMPLE_BYTES
