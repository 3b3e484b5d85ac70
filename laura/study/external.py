"""Arms whose checkpoints were made elsewhere: they join a study without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from laura.data.templates import Encoded
from laura.models.external import find_external, write_note
from laura.recipe.sections import Arm, BudgetSection, ExternalPoint, Recipe
from laura.results.progress import SILENT, Progress
from laura.results.store import RunStore, write_folder, write_json


def budget_of(arm: Arm, learning_rate: float, seed: int, budget: BudgetSection) -> BudgetSection:
    """The part of a budget that the checkpoints of one rate and seed have reached."""
    reached = {point.budget for point in _points(arm, learning_rate, seed)}
    unit = "tokens" if budget.tokens else "epochs"
    points = [point for point in budget.tokens or budget.epochs or [] if point in reached]
    return budget.model_copy(update={unit: points})


def epoch_size(train: Sequence[Encoded]) -> tuple[int, int]:
    """Tokens of all training examples, and how many of them are learnt."""
    learnt = sum(sum(one.supervised[1:]) for one in train)
    return sum(len(one.token_ids) for one in train), learnt


def marks_of(
    own: BudgetSection, whole: BudgetSection, epoch: tuple[int, int]
) -> list[dict[str, Any]]:
    """What stands in run.json of each budget point that checkpoints made elsewhere reached.

    The step is the point's place among those of the recipe, since nobody tells how many
    steps were taken; an epoch is taken to have the tokens of the recipe's `data.train`.

    Args:
        own: The points that were reached.
        whole: All points of the recipe.
        epoch: As `epoch_size` tells; not looked at where budgets are in tokens.
    """
    places = {point: place for place, point in enumerate(whole.tokens or whole.epochs or [], 1)}
    sizes: list[tuple[float, int, int]]
    if own.tokens:
        sizes = [(point, point, point) for point in own.tokens]
    else:
        tokens, learnt = epoch
        epochs = own.epochs or []
        sizes = [(point, round(point * tokens), round(point * learnt)) for point in epochs]
    return [
        {"budget": point, "step": places[point], "tokens": seen, "supervised_tokens": learnt}
        for point, seen, learnt in sizes
    ]


def check_external(recipe: Recipe, base: Path, progress: Progress = SILENT) -> None:
    """Find every checkpoint made elsewhere, before anything is measured or trained.

    Raises:
        LauraError: as `find_external`.
    """
    for arm in recipe.arms.values():
        for point in arm.external or []:
            find_external(point, arm, base, progress)


def adopt(
    run: RunStore,
    arm: Arm,
    learning_rate: float,
    seed: int,
    steps: dict[float, int],
    base: Path,
    progress: Progress = SILENT,
) -> None:
    """Note in a run's folder where its checkpoints lie.

    Args:
        run: The run's folder.
        arm: The arm.
        learning_rate: The rate the checkpoints were trained at.
        seed: Their seed.
        steps: Step of each budget point.
        base: Folder of the study's base.
        progress: Told about downloads.
    """
    for point in _points(arm, learning_rate, seed):
        step = steps[point.budget]
        weights = find_external(point, arm, base, progress)
        facts = {"step": step, "learning_rate": learning_rate, "seed": seed}
        fill = partial(write_note, point=point, weights=weights)
        write_folder(run.checkpoint(step), fill, facts)
    write_json(run.folder / "done.json", {"external": True, "points": sorted(steps.values())})


def _points(arm: Arm, learning_rate: float, seed: int) -> Iterable[ExternalPoint]:
    return (
        point
        for point in arm.external or []
        if point.learning_rate == learning_rate and point.seed == seed
    )
