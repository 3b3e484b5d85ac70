"""Which runs of a study go together; see `train/cohort.py` for how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil

from laura.recipe.sections import LoraArm, Recipe
from laura.study.session import RunSpec


def cohorts(specs: Iterable[RunSpec], recipe: Recipe, workers: int = 1) -> list[list[RunSpec]]:
    """The runs in groups that are trained together, in the order of their first ones.

    LoRA runs go together that share arm, seed and budget and so differ in the learning
    rate alone, at most `train.cohort` of them. More are shared out evenly: nine with at
    most eight are five and four. No worker shall wait while another has a cohort, so
    they are also shared out among the workers.
    """
    if recipe.train.cohort == 1:
        return [[spec] for spec in specs]
    alike: dict[tuple[str, int, str] | int, list[RunSpec]] = {}
    for number, spec in enumerate(specs):
        arm = recipe.arms[spec.arm]
        lora = isinstance(arm, LoraArm) and arm.external is None
        shared = (spec.arm, spec.seed, spec.budget.model_dump_json())
        alike.setdefault(shared if lora else number, []).append(spec)
    groups = []
    for group in alike.values():
        parts = max(ceil(len(group) / recipe.train.cohort), min(workers, len(group)))
        ends = [len(group) * part // parts for part in range(parts + 1)]
        groups += [group[start:end] for start, end in pairwise(ends)]
    return groups


def remark(specs: Sequence[RunSpec], recipe: Recipe) -> str | None:
    """What to tell who asked for cohorts where there are none."""
    wanted = recipe.train.cohort
    if wanted == 1 or any(len(group) > 1 for group in cohorts(specs, recipe)):
        return None
    return (
        f"train.cohort is {wanted}, but no two runs can be trained together: only LoRA runs of one "
        "arm, seed and budget at several learning rates can. Each is trained by itself"
    )
