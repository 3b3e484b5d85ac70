"""Whether arms fit the memory of devices, and the least change of a recipe with which they do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laura.recipe.checks import cross_faults
from laura.recipe.sections import AdapterArm, Recipe
from laura.results.errors import Fault, ModelError, RecipeError
from laura.results.units import memory_text
from laura.study.plan.machine import Machine
from laura.study.plan.memory import (
    evaluation_parts,
    measured_bytes,
    pass_of,
    training_parts,
    vllm_bytes,
)
from laura.study.plan.shapes import Shapes, read_shapes

if TYPE_CHECKING:
    from laura.study.session import Session

Change = dict[str, dict[str, Any]]
"""Values of keys by section, or `arms.NAME`; none is the recipe as it is."""
MORE_DEVICES = (2, 4, 8, 16, 32, 64)
TOLD = 0.05  # share of a peak from which a part is named


@dataclass(frozen=True)
class Fit:
    """How the arms of a recipe fit devices of one kind.

    Attributes:
        devices: How many there are.
        memory: Bytes of each.
        change: What must be changed for the arms that fit.
        arms: Of each of these, over how many devices a run is spread (`train.devices`), and the
            most bytes that training and measuring take on one.
        cannot: Why the others do not fit.
    """

    devices: int
    memory: int
    change: Change
    arms: dict[str, tuple[int, int]]
    cannot: dict[str, str]


def fit(recipe: Recipe, shapes: Shapes, machine: Machine, memory: int, devices: int) -> Fit:
    """The least change with which as many arms as can be fit together; the largest go first.

    Base, dtype and measures are the same for all arms of a study, so a change is of all. Over
    how many devices a run is spread is each arm's own: it changes no result.

    Args:
        recipe: The recipe.
        shapes: The base's.
        machine: A device.
        memory: All it has, in bytes.
        devices: How many there are.
    """
    arms, cannot = dict(recipe.arms), dict[str, str]()
    while arms:
        rest = recipe.model_copy(update={"arms": arms})
        for change in changes(rest, machine):
            changed, found = with_change(rest, change), dict[str, tuple[int, int]]()
            for name in arms:
                if (place := _place(changed, name, shapes, machine, memory, devices)) is None:
                    break
                found[name] = place
            else:
                return Fit(devices, memory, change, found, cannot)
        needs = {name: _least(rest, name, shapes, machine, devices) for name in arms}
        neediest = max(arms, key=lambda name: needs[name][0])
        cannot[neediest] = _why(rest, neediest, shapes, machine, memory, needs[neediest])
        del arms[neediest]
    return Fit(devices, memory, {}, {}, cannot)


def _place(
    recipe: Recipe, name: str, shapes: Shapes, machine: Machine, memory: int, devices: int
) -> tuple[int, int] | None:
    """Over how many devices an arm fits, and the most bytes of one; None where it does not."""
    for count in _counts(recipe, devices):
        spread = with_change(recipe, {"train": {"devices": count}})
        need = most_memory(spread, name, shapes, machine)
        if need <= memory and not _refusal(spread, name):
            return count, need
    return None


def _counts(recipe: Recipe, devices: int) -> list[int]:
    """Over how many a run may be spread, what is wanted first: as now, all, half of all, ..."""
    halves = (devices >> times for times in range(devices.bit_length()))
    return list(dict.fromkeys([min(recipe.train.devices, devices), *halves]))


def _refusal(recipe: Recipe, name: str) -> str:
    """Why a run of an arm cannot be spread over so many devices; empty where it can."""
    if recipe.train.devices == 1 or not recipe.arms[name].is_trained:
        return ""
    places = ("train.devices", f"arms.{name}.")
    found = (str(fault) for fault in cross_faults(recipe) if fault.path.startswith(places))
    return next(found, "")


def _least(
    recipe: Recipe, name: str, shapes: Shapes, machine: Machine, devices: int
) -> tuple[int, Recipe]:
    """The least bytes of a device that an arm needs by itself, and the recipe that does with it."""
    alone = recipe.model_copy(update={"arms": {name: recipe.arms[name]}})
    tried = (
        with_change(with_change(alone, change), {"train": {"devices": count}})
        for change in changes(alone, machine)
        for count in _counts(alone, devices)
    )
    allowed = (one for one in tried if not _refusal(one, name))
    found = [(most_memory(one, name, shapes, machine), one) for one in allowed]
    return min(found, key=lambda pair: pair[0])


def _why(
    recipe: Recipe, name: str, shapes: Shapes, machine: Machine, memory: int,
    least: tuple[int, Recipe],
) -> str:  # fmt: skip
    """Why an arm is left out: of what it needs at the least, and what would do."""
    need, recipe = least
    if need <= memory:
        return (
            f"fits {_on(recipe.train.devices)} only by itself, in a study of its own: "
            f"{memory_text(need)} with base.dtype: {recipe.base.dtype}"
        )
    training, measuring = arm_parts(recipe, name, shapes, machine)
    kind, parts, over = "measuring", measuring, _on(1)
    if training is not None and training["peak"] >= measuring["peak"]:
        kind, parts, over = "training", training, _on(recipe.train.devices)
    peak = parts["peak"]
    told = [
        f"{part} {memory_text(size)}"
        for part, size in parts.items()
        if part != "peak" and size >= TOLD * peak
    ]
    words = f"{kind} it takes at least {memory_text(need)} {over} ({', '.join(told)}; "
    words += "not all at once)"
    refused = ""
    for count, change in itertools.product(MORE_DEVICES, changes(recipe, machine)):
        spread = with_change(with_change(recipe, change), {"train": {"devices": count}})
        if most_memory(spread, name, shapes, machine) <= memory:
            if not (why := _refusal(spread, name)):
                return f"{words}; it fits over {count}"
            refused = refused or f"; over {count} it would, but {why}"
    other = "" if isinstance(recipe.arms[name], AdapterArm) else "LoRA, "
    return f"{words}{refused or f'; take {other}a smaller base or more memory'}"


def _on(devices: int) -> str:
    """On how many devices something is."""
    return f"over {devices} devices" if devices > 1 else "on one device"


def changes(recipe: Recipe, machine: Machine, arms: Collection[str] = ()) -> Iterator[Change]:
    """Changes with the same result, or nearly, that need less: none, then single ones, then more.

    A base in four bits is another base, and tried when nothing else fits.

    Args:
        recipe: What is changed.
        machine: A device.
        arms: Those that are to fit; none for all.
    """
    lora = [name for name, arm in recipe.arms.items() if isinstance(arm, AdapterArm)]
    mixed, train, measure = len(lora) < len(recipe.arms), recipe.train, recipe.measure
    possible: list[Change] = []
    if not train.recompute:
        possible.append({"train": {"recompute": True}})
    if train.rows_per_pass > 1:
        possible.append({"train": {"rows_per_pass": 1}})
    if measure.engine != "laura":
        possible.append({"measure": {"engine": "laura"}})
    # Beside float32 weights bf16 needs copies of them, but caches of half the size.
    low = measured_bytes(measure, machine) == 2
    possible.append({"measure": {"precision": "fp32" if low else "bf16"}})
    wide = [f"arms.{name}" for name in lora if not arms or name in arms]
    if recipe.base.dtype == "float32" and not mixed:
        possible.append({"base": {"dtype": "bfloat16"}})
    elif recipe.base.dtype == "float32" and wide and train.precision != "fp32":
        possible.append({arm: {"base_dtype": "bfloat16"} for arm in wide})
    sets = [c for n in range(len(possible) + 1) for c in itertools.combinations(possible, n)]
    if not mixed and recipe.base.quantization is None and measure.engine == "laura":
        sets += [({"base": {"quantization": "nf4"}}, *more) for more in sets]
    for one in sets:
        change: Change = {}
        for part in one:
            for section, keys in part.items():
                change[section] = {**change.get(section, {}), **keys}
        yield change


def with_change(recipe: Recipe, change: Change) -> Recipe:
    """A recipe with other values."""
    for section, keys in change.items():
        place, _, arm = section.partition(".")
        part = getattr(recipe, place)
        made = (part[arm] if arm else part).model_copy(update=keys)
        recipe = recipe.model_copy(update={place: {**part, arm: made} if arm else made})
    return recipe


# ----- one device, before a study begins -----


def check_memory(session: Session, arms: Collection[str]) -> None:
    """Refuse arms that the device of an open study cannot hold, see `refuse_too_large`."""
    from laura.models.device import pick_device, total_memory_bytes

    try:
        shapes, machine = opened(session)
    except ModelError:
        return  # a base that no plan can be made of, which is told where the plan is
    memory = total_memory_bytes(pick_device(machine.device))
    refuse_too_large(session.recipe, shapes, machine, memory, arms)


def refuse_too_large(
    recipe: Recipe,
    shapes: Shapes,
    machine: Machine,
    memory: int,
    arms: Collection[str] | None = None,
) -> None:
    """Refuse arms that a device cannot hold.

    Args:
        recipe: The recipe.
        shapes: The base's.
        machine: The device.
        memory: All it has, in bytes.
        arms: Those that are wanted; None for all.

    Raises:
        RecipeError: what each needs, what is there, and the least change that makes it fit.
    """
    faults = []
    for name in recipe.arms if arms is None else arms:
        need = most_memory(recipe, name, shapes, machine)
        if need <= memory:
            continue
        problem = f"needs {memory_text(need)} of memory, and {machine.device} has "
        problem += f"{memory_text(memory)}; "
        for change in changes(recipe, machine, [name]):
            less = most_memory(with_change(recipe, change), name, shapes, machine)
            if less <= memory:
                problem += f"{override_words(change)} needs {memory_text(less)}"
                break
        else:
            other = "" if isinstance(recipe.arms[name], AdapterArm) else "LoRA, "
            problem += f"no setting makes it fit: take {other}a smaller base or more memory"
        faults.append(Fault(f"arms.{name}", problem))
    if faults:
        raise RecipeError(faults, f"{recipe.name} on {recipe.base.model}")


def override_words(change: Change) -> str:
    """A change as `--set` takes it."""
    return ", ".join(
        f"{section}.{key}={json.dumps(value)}"
        for section, keys in change.items()
        for key, value in keys.items()
    )


def most_memory(recipe: Recipe, name: str, shapes: Shapes, machine: Machine) -> int:
    """Peak of training an arm and of measuring it, the larger; without keys and values.

    Processes of one processor share its memory. vLLM waits beside both.
    """
    training, measuring = arm_parts(recipe, name, shapes, machine)
    processes = recipe.train.devices if machine.kind == "cpu" else 1
    here = max(measuring["peak"], processes * (training["peak"] if training else 0))
    awake, waiting = vllm_bytes(shapes, recipe, machine)
    return max(awake + machine.runtime, here + waiting)


def arm_parts(
    recipe: Recipe, name: str, shapes: Shapes, machine: Machine
) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Bytes of training an arm, if it is trained, and of measuring it, by part.

    Of one device of those that `train.devices` says, which measures alone.
    """
    arm, train = recipe.arms[name], recipe.train
    measuring = evaluation_parts(shapes, recipe, name, machine)
    if not arm.is_trained:
        return None, measuring
    one = pass_of(recipe, name, machine)
    return training_parts(shapes, arm, train.optimiser, one, machine, train.devices), measuring


def opened(session: Session) -> tuple[Shapes, Machine]:
    """The base of an open study, and the device that it is on.

    Raises:
        ModelError: the base is of a kind that no plan can be made of.
    """
    from laura.models.device import pick_device, resolve_precision

    device = pick_device(session.bench.device_name)
    precision = resolve_precision(session.recipe.train.precision, device)
    shapes = read_shapes(session.bench.base.folder / "config.json")
    return shapes, Machine(str(device), precision.itemsize)
