"""`laura plan`: memory, tokens, operations, time and disk of a recipe before anything starts.

Of the base only its config.json is read, so a model of any size can be planned anywhere.
No torch but where this machine is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.data.corpus import MOST_WORKERS
from laura.models.cache import model_entry
from laura.models.registry import MODELS, PackagedModel
from laura.recipe.reading import Series
from laura.recipe.sections import BaseSection, Recipe
from laura.results.errors import ModelError, UsageError
from laura.results.progress import duration_text
from laura.study.claims.simulated import could_decide
from laura.study.plan.fitting import arm_parts, fit, opened
from laura.study.plan.machine import Machine, absent_gpu, measure_machine
from laura.study.plan.memory import (
    evaluation_parts,
    pass_of,
    trainable_parameters,
    training_parts,
)
from laura.study.plan.misfits import refuse_arms
from laura.study.plan.shapes import Shapes, shapes_of
from laura.study.plan.text import count_text, plan_line
from laura.study.plan.work import (
    TOKENISED_A_SECOND,
    ArmWork,
    Survey,
    arm_work,
    room_for_warmup,
    survey,
    totals,
)

if TYPE_CHECKING:
    from laura.study.session import Session

MOST_DEVICES = 100_000
# Training has more to do than its products (norms, rotations, attention, the optimiser), which
# go at the memory's speed. That it takes up to this many times as long is a bound of our own.
SLOWEST = 3.0
LARGE_CORPUS = 60 * TOKENISED_A_SECOND  # tokens whose tokenising is told


def plan(
    recipe: Recipe,
    *,
    devices: Sequence[int] | None = None,
    device_memory: int | None = None,
    device: str | None = None,
    flops_per_second: float | None = None,
    epoch_tokens: int | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """What a recipe will take.

    Args:
        recipe: What is planned.
        devices: Numbers of GPUs to plan for; None plans for this machine, which is measured, and
            `train.devices`.
        device_memory: Bytes of one device, to say which arms fit and how; None for this machine's,
            and with `devices` says nothing of it.
        device: Device of this machine; None for the best there is.
        flops_per_second: Rate of one device; None measures this machine's matrix products,
            and with `devices` tells no time.
        epoch_tokens: Tokens of one epoch, where the data is not at hand.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Returns:
        A JSON value: base, machine, arms (each with memory by part and device), fits (which arms
        fit so many devices, and with what change), totals, notes.

    Raises:
        ModelError, HubError: the base's config cannot be had.
        RecipeError: an arm does not fit the base; every fault is listed.
        UsageError: a number that cannot be meant.
    """
    counts = [recipe.train.devices] if devices is None else check_devices(devices)
    if flops_per_second is not None and not 1e6 <= flops_per_second <= 1e21:
        raise UsageError(
            f"--flops-per-second must be from 1e6 to 1e21, came {flops_per_second:g}; an H100 "
            "reaches about 4e14 in bf16, a processor's core 1e10 to 1e11 in fp32"
        )
    shapes = shapes_of(recipe.base)
    refuse_arms(recipe, shapes)
    known = survey(recipe, tokenizer_file(recipe.base), data_dir, epoch_tokens)
    machine = _machine(recipe, shapes, devices, device)
    rate = flops_per_second or (machine.flops_per_second if devices is None else None)
    memory, bare = device_memory or machine.memory, replace(machine, cache_bytes=0)
    works = {name: arm_work(recipe, name, shapes, known) for name in recipe.arms}
    arms = [
        _arm(recipe, name, shapes, known, machine, work, counts, rate)
        for name, work in works.items()
    ]
    whole = totals(recipe, shapes, known, list(works.values()))
    measuring = whole["evaluation"]
    measuring["seconds"] = _seconds(measuring["flops"], rate, 1)
    parts = [arm["devices"][0][kind] for arm in arms for kind in ("training", "evaluation")]
    peak = max(part["peak"] for part in parts if part is not None)
    return {
        "name": recipe.name,
        "base": {
            "model": recipe.base.model,
            "quantization": recipe.base.quantization,
            "parameters": shapes.parameters,
            "least_width": least_width(shapes),
            **asdict(shapes),
        },
        "machine": {**asdict(machine), "measured": devices is None, "devices": list(counts)},
        "data": asdict(known),
        "arms": arms,
        "fits": [asdict(fit(recipe, shapes, bare, memory, count)) for count in counts if memory],
        "totals": {
            **whole,
            "seconds": _seconds(whole["flops"], rate, _abreast(machine, counts[0])),
            "peak": peak,
        },
        "decides": could_decide({recipe.name: recipe}, least_width(shapes)),
        "notes": _notes(recipe, known, devices, rate, flops_per_second, machine, works.values()),
    }


def least_width(shapes: Shapes) -> int:
    """Fewest directions that a matrix of the base has."""
    return min(min(shape) for shape in shapes.maps.values())


def check_devices(counts: Sequence[int]) -> list[int]:
    """The numbers of devices, if they can be meant.

    Raises:
        UsageError: none, one given twice, or one out of range.
    """
    if not counts or len(set(counts)) < len(counts):
        raise UsageError(
            f"--devices wants different numbers, as in --devices 1,8,64; came {counts}"
        )
    if absurd := [n for n in counts if not 1 <= n <= MOST_DEVICES]:
        raise UsageError(f"--devices must be from 1 to {MOST_DEVICES}, came {absurd[0]}")
    return list(counts)


def tokenizer_file(section: BaseSection) -> Path | None:
    """tokenizer.json of a base that lies on this machine."""
    model = MODELS.get(section.model)
    if isinstance(model, PackagedModel):
        return model.folder / "tokenizer.json"
    folder = Path(section.model).expanduser()
    folder = model_entry(section.model) if model is not None else folder
    return folder / "tokenizer.json"


def _machine(
    recipe: Recipe, shapes: Shapes, devices: Sequence[int] | None, device: str | None
) -> Machine:
    if devices is None:
        return measure_machine(shapes, device, recipe.train.precision)
    return absent_gpu(recipe.train.precision)


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
    arm = recipe.arms[name]
    learnt = known.learnt_share(arm.replay)
    one = pass_of(recipe, name, machine, learnt, known.document_tokens)
    devices = []
    for count in counts:
        training = None
        if arm.is_trained:
            optimiser = recipe.train.optimiser
            training = training_parts(shapes, arm, optimiser, one, machine, count)
        devices.append(
            {
                "devices": count,
                "training": training,
                "evaluation": evaluation_parts(shapes, recipe, name, machine),
                "seconds": _seconds(work.flops, rate, _abreast(machine, count)),
            }
        )
    trained = trainable_parameters(shapes, arm)
    facts = {
        "arm": name,
        "method": arm.method,
        "external": arm.external is not None,
        "of": arm.of,
        "trained_parameters": trained,
        "share": trained / shapes.parameters,
        "lockstep": one.runs,
    }
    return {**facts, **asdict(work), "devices": devices}


def _abreast(machine: Machine, devices: int) -> int:
    """How many devices' rates add up: processes of one processor share its rate."""
    return 1 if machine.kind == "cpu" else devices


def _seconds(flops: int | None, rate: float | None, devices: int) -> list[float] | None:
    """Shortest and longest training time; the shortest is that of the products alone."""
    if flops is None or rate is None:
        return None
    least = flops / rate / devices
    return [least, SLOWEST * least]


def _notes(
    recipe: Recipe, known: Survey, devices: Sequence[int] | None, rate: float | None,
    given: float | None, machine: Machine, works: Iterable[ArmWork],
) -> list[str]:  # fmt: skip
    if rate is None:
        time = "No time: give --flops-per-second, such as 2e14 for an H100 in bf16."
    elif given is not None:
        time = f"Time at the {given:.3g} operations a second that were given, and at a third of it."
    else:
        time = (
            f"Time from matrix products alone at {rate:.3g} operations a second, measured here "
            f"(fastest {machine.spread:.1f} times slowest), to {SLOWEST:g} times as long."
        )
    arms, search, warmup = recipe.arms.values(), recipe.search, recipe.train.warmup_steps or 0
    room = min((room_for_warmup(recipe, one.steps) for one in works if one.steps), default=warmup)
    unknown = recipe.budget.epochs and known.epoch_tokens is None
    notes = {
        f"Tokens of the data: {known.source}.": True,
        _tokenising(known, machine): (known.corpus_tokens or 0) >= LARGE_CORPUS,
        "Tokens, operations and time are unknown: give --epoch-tokens N.": unknown,
        time: True,
        "Checkpoints made elsewhere are measured, not trained; their files lie outside the "
        "study (a Hub download, or a folder of yours).": any(arm.external for arm in arms),
        "What an arm's model answers (policy) is counted as it is learnt, not as it is "
        "written.": any(arm.policy for arm in arms),
        "Replay is taken to be learnt on every token.": any(arm.replay for arm in arms),
        f"A search of {search.trials} trials is dealt evenly to the arms of a family; which it "
        "really takes, and which a pruner stops, it decides as it goes.": search.sampler != "grid",
        "Memory of an arm is that of all its runs in lock-step.": recipe.train.cohort > 1,
        "Memory of measuring is Laura's own engine's; vLLM (measure.engine) takes its weights and "
        "keys and values beside it, on a GPU in turns with it.": recipe.measure.engine == "vllm",
        "Every layer is passed once more for its gradient (train.recompute): up to half as many "
        "operations and as much time again as is told.": recipe.train.recompute,
        "On N GPUs, with train.devices: N: weights, and in full finetuning gradients and "
        "optimiser, are spread over them (FSDP, the paper's 1/N); activations are each device's "
        "own, and a model is measured on one. The CUDA context is taken as 512 MiB, precision auto "
        "as bf16; keys and values of generation (half of what is free) come on top. Which arms fit "
        "is told with --device-memory, such as 80GB.": devices is not None,
        f"train.warmup_steps is {warmup}, but the shortest run reaches its learning rate with "
        f"at most about {room}: `laura compare` will refuse it. Lower it, raise the budget, or "
        "leave it out.": room < warmup,
    }
    return [words for words, holds in notes.items() if holds]


def _tokenising(known: Survey, machine: Machine) -> str:
    """How long the data takes to become tokens."""
    seconds = (known.corpus_tokens or 0) / TOKENISED_A_SECOND
    words = f"Tokenising {count_text(known.corpus_tokens)} tokens, once: about "
    words += f"{duration_text(seconds)} by one process at {TOKENISED_A_SECOND:,} a second; "
    if not machine.threads:
        most = duration_text(seconds / MOST_WORKERS)
        return words + f"every core has one, {most} by {MOST_WORKERS}, the most."
    workers = min(machine.threads, MOST_WORKERS)
    return words + f"{duration_text(seconds / workers)} by the {workers} used here."


def plan_series(
    series: Series, *, epoch_tokens: int | None = None, **options: Any
) -> dict[str, Any]:
    """What each setting of a series takes, and all of them.

    Args:
        series: The settings.
        epoch_tokens: As for `plan`, with one setting only: every data set has its own.
        options: As for `plan`.

    Returns:
        {"name", "settings": {name: plan}, "totals", "decides"}.

    Raises:
        UsageError: `epoch_tokens` with several settings.
        LauraError: as `plan`.
    """
    if epoch_tokens is not None and len(series.settings) > 1:
        names = ", ".join(series.settings)
        raise UsageError(
            f"--epoch-tokens is of one data set; say of which with --setting, one of: {names}"
        )
    plans = {
        name: plan(recipe, epoch_tokens=epoch_tokens, **options)
        for name, recipe in series.settings.items()
    }
    whole = series_totals({name: found["totals"] for name, found in plans.items()})
    width = min(found["base"]["least_width"] for found in plans.values())
    decides = could_decide(series.settings, width)
    return {"name": series.name, "settings": plans, "totals": whole, "decides": decides}


def series_totals(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Several settings' totals as one; they are carried out one after the other.

    What one setting cannot tell is left out of the sums, and the setting named in `unknown`.

    Args:
        found: `totals` of each setting's plan.
    """
    each = list(found.values())
    disk = {
        "corpus": sum(one["disk"]["corpus"] for one in each),
        "checkpoints": sum(one["disk"]["checkpoints"] for one in each),
        # A setting's states are deleted when its runs have ended.
        "resume": max(one["disk"]["resume"] for one in each),
    }
    return {
        "runs": sum(one["runs"] for one in each),
        "longer": sum(one["longer"] for one in each),
        "tokens": _sum(one["tokens"] for one in each),
        "flops": _sum(one["flops"] for one in each),
        "seconds": _ends(one["seconds"] for one in each),
        "peak": max((one["peak"] for one in each if one["peak"] is not None), default=None),
        "evaluation": {
            key: _ends(one["evaluation"][key] for one in each)
            if key == "seconds"
            else sum(one["evaluation"][key] for one in each)
            for key in each[0]["evaluation"]
        },
        "disk": {**disk, "all": sum(disk.values())},
        "unknown": [name for name, one in found.items() if one["flops"] is None],
    }


def _ends(times: Iterable[list[float] | None]) -> list[float] | None:
    """Shortest and longest of all together, of those that are known; None where none is."""
    known = [time for time in times if time is not None]
    return [sum(ends) for ends in zip(*known, strict=True)] if known else None


def _sum(counts: Iterable[int | None]) -> int | None:
    """Of those that are known; None where none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def announcement(session: Session) -> str:
    """The plan of an open study in one line: what is known by then costs nothing to tell."""
    recipe = session.recipe
    try:
        shapes, machine = opened(session)
    except ModelError as error:
        return f"No plan: {error}"
    known = Survey(session.epoch_tokens, None, recipe.train.row_tokens, 1.0, "")
    trained = ((name, arm_parts(recipe, name, shapes, machine)[0]) for name in recipe.arms)
    peaks = {name: parts["peak"] for name, parts in trained if parts is not None}
    works = [arm_work(recipe, name, shapes, known) for name in recipe.arms]
    return plan_line(totals(recipe, shapes, known, works), peaks)
