"""The remedies that an arm names, opened: what its gradients follow, and how its steps are taken.

A remedy is a file, and a line of its place's table in `recipe/remedies.py`; what a file holds
says the package of its place: `token_weights`, `penalties`, `policies`, `paces`, `averages`.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from laura.data.packing import Row
from laura.models.device import autocast
from laura.models.losses import Objective, base_states
from laura.models.reference import BaseBeside
from laura.recipe.sections import AnyArm
from laura.training.batches import BatchPlan
from laura.training.learner import model_inputs
from laura.training.optimisers import Average, StepRule

MEDIAN_DOCUMENTS = 256


def objective_of(arm: AnyArm) -> Objective:
    """What an arm's gradients follow; `beside_base` makes it ready where it reads the base."""
    objective = Objective()
    if found := arm.remedy("token_weight"):
        remedy, strength = found
        weights = partial(_opened(remedy.file, "weights"), strength=strength)
        objective = Objective(weights, remedy.normalised, remedy.reads_base)
    for found in map(arm.remedy, ("penalty", "policy")):
        if found and found[0].reads_base:
            slope = _opened(found[0].file, "slope")
            objective = replace(objective, slope=slope, strength=found[1])
    if (found := arm.remedy("policy")) and not found[0].reads_base:
        advantages = partial(_opened(found[0].file, "advantages"), strength=found[1])
        objective = replace(objective, advantages=advantages)
    return objective


def rule_of(arm: AnyArm, rule: StepRule) -> StepRule:
    """How an arm's steps are taken, its remedies included."""
    if (found := arm.remedy("penalty")) and not found[0].reads_base:
        rule = replace(rule, pull=_opened(found[0].file, "pull"), pull_strength=found[1])
    if found := arm.remedy("pace"):
        rule = replace(rule, pace=partial(_opened(found[0].file, "factor"), strength=found[1]))
    if found := arm.remedy("average"):
        share, lead = (
            partial(_opened(found[0].file, name), strength=found[1]) for name in ("share", "lead")
        )
        rule = replace(rule, average=Average(share, lead))
    return rule


def beside_base(objective: Objective, model: Any, plan: BatchPlan, dtype: torch.dtype) -> Objective:
    """The objective with the base that it reads.

    Args:
        objective: What an arm's gradients follow.
        model: As it is before the first step.
        plan: Of the first documents of its rows the median is taken.
        dtype: Arithmetic of a pass.
    """
    if not objective.reads_base:
        return objective
    objective = replace(objective, reference=BaseBeside(model))
    if not objective.weighs_base:
        return objective
    means: list[float] = []
    for row in itertools.chain.from_iterable(plan.batches):
        inputs, labels = model_inputs([row], model.device)
        with autocast(model.device, dtype):
            losses = base_states(objective, inputs, labels, dtype).losses
        assert losses is not None
        means += _one_each(row, losses.examples_N.tolist())
        if len(means) >= MEDIAN_DOCUMENTS:
            break
    return replace(objective, median=median(means))


def _one_each(row: Row, means: list[float]) -> Iterator[float]:
    """Of values of a row's labels that are alike within a document, one a document."""
    first, place = 0, 0
    for length in row.lengths:
        count = sum(label >= 0 for label in row.labels[first : first + length])
        if count:
            yield means[place]
        first, place = first + length, place + count


def _opened(file: str, name: str) -> Callable[..., Any]:
    opened: Callable[..., Any] = getattr(importlib.import_module(file), name)
    return opened
