"""`laura plan`: memory, tokens, operations, time and disk of a recipe before anything starts.

Of the base only its config.json is read, so a model of any size can be planned anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from laura.errors import Fault, RecipeError, UsageError
from laura.models.cache import model_entry
from laura.models.registry import MODELS, PackagedModel
from laura.models.targets import GROUPS, is_named
from laura.recipe import BaseSection, LoraArm, Recipe
from laura.study.plan_data import Survey, survey
from laura.study.plan_evaluation import evaluation_parts, sample_bytes
from laura.study.plan_machine import Machine, measure_machine
from laura.study.plan_memory import (
    adapted_maps,
    pass_of,
    trainable_parameters,
    training_parts,
)
from laura.study.plan_shapes import Shapes, shapes_of
from laura.study.plan_work import ArmWork, arm_work, corpus_bytes, runs_of

NUMBER_BYTES = {"float32": 4, "bfloat16": 2}
MOST_GPUS = 100_000
# Training has more to do than its products (norms, rotations, attention, the optimiser), which
# go at the memory's speed: it takes up to this many times as long. See benchmarks/README.md.
SLOWEST = 3.0


def plan(
    recipe: Recipe,
    *,
    gpus: Sequence[int] | None = None,
    device: str | None = None,
    flops_per_second: float | None = None,
    epoch_tokens: int | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """What a recipe will take.

    Args:
        recipe: What is planned.
        gpus: Numbers of GPUs to plan for; None plans for this machine, which is measured.
        device: Device of this machine; None for the best there is.
        flops_per_second: Rate of one device; None measures this machine's matrix products,
            and with `gpus` tells no time.
        epoch_tokens: Tokens of one epoch, where the data is not at hand.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Returns:
        A JSON value: base, machine, arms (each with memory by part and device), totals, notes.

    Raises:
        ModelError, HubError: the base's config cannot be had.
        RecipeError: an arm does not fit the base; every fault is listed.
        UsageError: a number that cannot be meant.
    """
    counts = [1] if gpus is None else check_gpus(gpus)
    if flops_per_second is not None and not 1e6 <= flops_per_second <= 1e21:
        raise UsageError(
            f"--flops-per-second must be from 1e6 to 1e21, came {flops_per_second:g}; an H100 "
            "reaches about 4e14 in bf16, a processor's core 1e10 to 1e11 in fp32"
        )
    shapes = shapes_of(recipe.base)
    refuse_arms(recipe, shapes)
    known = survey(recipe, _tokenizer(recipe.base), data_dir, epoch_tokens)
    machine = _machine(recipe, shapes, gpus, device)
    rate = flops_per_second or (machine.flops_per_second if gpus is None else None)
    works = {
        name: arm_work(recipe, arm, shapes, known, NUMBER_BYTES[recipe.base.dtype])
        for name, arm in recipe.arms.items()
    }
    arms = [
        _arm(recipe, name, shapes, known, machine, works[name], counts, rate)
        for name in recipe.arms
    ]
    whole = totals(recipe, shapes, known)
    return {
        "name": recipe.name,
        "base": {"model": recipe.base.model, "parameters": shapes.parameters, **asdict(shapes)},
        "machine": {**asdict(machine), "measured": gpus is None, "gpus": list(counts)},
        "data": asdict(known),
        "arms": arms,
        "totals": {**whole, "seconds": _seconds(whole["flops"], rate, counts[0])},
        "notes": _notes(recipe, known, gpus, rate, flops_per_second, machine),
    }


def refuse_arms(recipe: Recipe, shapes: Shapes) -> None:
    """Check that adapters fit the base's matrices.

    Raises:
        RecipeError: a target names no map, or a rank exceeds one; all are listed.
    """
    faults = []
    for name, arm in recipe.arms.items():
        if not isinstance(arm, LoraArm):
            continue
        targets = GROUPS.get(arm.targets, ()) if isinstance(arm.targets, str) else arm.targets
        full_names = [full for full, _ in shapes.named_maps()]
        absent = [t for t in targets if not any(is_named(full, t) for full in full_names)]
        if absent:
            kinds = ", ".join(part.rsplit(".", 1)[1] for part in shapes.maps)
            problem = f"names {', '.join(absent)}, which the base lacks; it has {kinds}"
            faults.append(Fault(f"arms.{name}.targets", problem))
        small = {
            full.rsplit(".", 1)[1]: shape
            for full, shape in adapted_maps(shapes, arm)
            if arm.rank > min(shape)
        }
        if small:
            maps = ", ".join(f"{kind} ({o} x {i})" for kind, (o, i) in small.items())
            least = min(min(shape) for shape in small.values())
            problem = f"is {arm.rank}, more than {maps} can have; at most {least}"
            faults.append(Fault(f"arms.{name}.rank", problem))
    if faults:
        raise RecipeError(faults, f"{recipe.name} on {recipe.base.model}")


def check_gpus(counts: Sequence[int]) -> list[int]:
    """The numbers of GPUs, if they can be meant.

    Raises:
        UsageError: none, one given twice, or one out of range.
    """
    if not counts or len(set(counts)) < len(counts):
        raise UsageError(f"--gpus wants different numbers, as in --gpus 1,8,64; came {counts}")
    if absurd := [n for n in counts if not 1 <= n <= MOST_GPUS]:
        raise UsageError(f"--gpus must be from 1 to {MOST_GPUS}, came {absurd[0]}")
    return list(counts)


def _tokenizer(section: BaseSection) -> Path | None:
    """tokenizer.json of a base that lies on this machine."""
    model = MODELS.get(section.model)
    if isinstance(model, PackagedModel):
        return model.folder / "tokenizer.json"
    folder = Path(section.model).expanduser()
    folder = model_entry(section.model) if model is not None else folder
    return folder / "tokenizer.json"


def _machine(
    recipe: Recipe, shapes: Shapes, gpus: Sequence[int] | None, device: str | None
) -> Machine:
    if gpus is None:
        return measure_machine(shapes, device, recipe.train.precision)
    number = 4 if recipe.train.precision == "fp32" else 2
    return Machine("cuda", number, 0, 0.0, 1.0, 0)


def _arm(
    recipe: Recipe,
    name: str,
    shapes: Shapes,
    known: Survey,
    machine: Machine,
    work: ArmWork,
    counts: Sequence[int],
    rate: float | None,
) -> dict[str, Any]:
    arm, number = recipe.arms[name], NUMBER_BYTES[recipe.base.dtype]
    one = pass_of(recipe.train, number, machine.arithmetic_bytes, known.learnt)
    measuring = {"fp32": 4, "bf16": 2}.get(recipe.measure.precision, machine.arithmetic_bytes)
    devices = []
    for count in counts:
        training = training_parts(
            shapes, arm, recipe.train.optimiser, one, runtime=machine.runtime, devices=count,
            on_processor=machine.device == "cpu",
        )  # fmt: skip
        evaluation = evaluation_parts(
            shapes, arm, recipe.measure, weight_bytes=number, arithmetic_bytes=measuring,
            device=machine.device, cache_bytes=machine.cache_bytes, runtime=machine.runtime,
            devices=count,
        )  # fmt: skip
        devices.append(
            {
                "devices": count,
                "training": asdict(training),
                "evaluation": asdict(evaluation),
                "seconds": _seconds(work.flops, rate, count),
            }
        )
    trained = trainable_parameters(shapes, arm)
    share = trained / shapes.parameters
    facts = {"arm": name, "method": arm.method, "trained_parameters": trained, "share": share}
    return {**facts, **asdict(work), "devices": devices}


def _seconds(flops: int | None, rate: float | None, devices: int) -> list[float] | None:
    """Shortest and longest training time; the shortest is that of the products alone."""
    if flops is None or rate is None:
        return None
    least = flops / rate / devices
    return [least, SLOWEST * least]


def totals(recipe: Recipe, shapes: Shapes, known: Survey) -> dict[str, Any]:
    """Runs, tokens, operations and bytes on the disk of a whole study."""
    number = NUMBER_BYTES[recipe.base.dtype]
    works = [arm_work(recipe, arm, shapes, known, number) for arm in recipe.arms.values()]
    flops = [work.flops for work in works if work.flops is not None]
    whole = len(flops) == len(works)
    points = len(recipe.budget.tokens or recipe.budget.epochs or [])
    apart = len(runs_of(recipe, [0] * points))
    measured = 1 + sum(points * work.runs // apart for work in works)
    disk = {
        "checkpoints": sum(work.checkpoint_bytes for work in works),
        "resume": max(work.resume_bytes for work in works),
        "corpus": corpus_bytes(recipe, shapes, known),
        "samples": measured * sample_bytes(recipe.measure),
    }
    return {
        "runs": sum(work.runs for work in works),
        "tokens": sum(work.tokens or 0 for work in works) if whole else None,
        "flops": sum(flops) if whole else None,
        "disk": {**disk, "all": sum(size or 0 for size in disk.values())},
    }


def _notes(
    recipe: Recipe,
    known: Survey,
    gpus: Sequence[int] | None,
    rate: float | None,
    given: float | None,
    machine: Machine,
) -> list[str]:
    notes = [f"Tokens of the data: {known.source}."]
    if recipe.budget.epochs and known.epoch_tokens is None:
        notes.append("Tokens, operations and time are unknown: give --epoch-tokens N.")
    if rate is None:
        notes.append("No time: give --flops-per-second, such as 2e14 for an H100 in bf16.")
    elif given is not None:
        notes.append(f"Time at the {given:.3g} operations a second that were given, and at a "
                     f"third of it; without measuring.")  # fmt: skip
    else:
        notes.append(
            f"Time from matrix products alone at {rate:.3g} operations a second, measured here "
            f"(fastest {machine.spread:.1f} times slowest), to {SLOWEST:g} times as long; without "
            "measuring."
        )
    if gpus is not None:
        notes.append(
            "On GPUs: weights, gradients and optimiser over N devices as FSDP would (the paper's "
            "1/N); activations are each device's own. This version trains a run on one device. "
            "The CUDA context (some hundred MB) and keys and values of generation (half of what "
            "is free) come on top; precision auto is taken as bf16."
        )
    return notes
