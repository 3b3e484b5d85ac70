"""What is wrong with a recipe, in words: by pydantic within a section, by our checks between them.

What must be so within one section stands with that section.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from laura.recipe.remedies import PLACES
from laura.recipe.search import families_of
from laura.recipe.sections import (
    BASE_SAMPLES,
    METHODS,
    NOT_IN_GRIDS,
    AdapterArm,
    ExternalPoint,
    FullArm,
    LoraArm,
    OftArm,
    Place,
    Recipe,
    RewriteSection,
    Section,
    short,
)
from laura.recipe.tasks import LOSSES, is_task_file, task_file
from laura.results.errors import Fault
from laura.results.units import budget_text

Check = Callable[[Recipe], Iterable[Fault]]
_CHECKS: list[tuple[set[str], Check]] = []
# The same as in engine/vllm.py, which needs torch; a test compares them.
VLLM_RANK = 512
VLLM_TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj",
    "gate_up_proj",
)  # fmt: skip
STAND_IN = {
    "name": "x",
    "base": {"model": "x"},
    "data": {"train": "x"},
    "budget": {"epochs": [1]},
    "arms": {"x": {"method": "full"}},
}


def check_recipe(
    data: dict[str, Any], data_dir: Path | None = None
) -> tuple[Recipe | None, list[Fault]]:
    """A recipe of values that were read, or every fault in them.

    Sections with faults are stood in for, arms with faults left out, and checks that need
    them are not made, so that one mistake does not hide another.

    Args:
        data: The values, which may hold anything.
        data_dir: Data folder, where files of the user's own tasks may lie too; None
            means `LAURA_DATA`, if set.
    """
    recipe, found = validate(Recipe, data)
    whole: Recipe | None = recipe
    left = data
    while whole is None:
        left = _without(left, found)
        # What grids make is found once nothing else is wrong.
        whole, more = validate(Recipe, {**STAND_IN, **left})
        found += [fault for fault in more if fault not in found]
    crossed = cross_faults(whole, _sections_of(found), "arms" in left)
    found += _as_written(crossed, whole, left) if "arms" in left else crossed
    named = os.environ.get("LAURA_DATA")
    found += _file_faults(data, data_dir or (Path(named) if named else None))
    return recipe, found


def _sections_of(faults: Iterable[Fault]) -> set[str]:
    return {fault.path.split(".")[0] for fault in faults}


def _without(data: dict[str, Any], faults: Sequence[Fault]) -> dict[str, Any]:
    """The sections without faults; of `arms` those arms that have none, if some have.

    Less is left with each call, down to nothing.
    """
    faulty, arms = _sections_of(faults), data.get("arms")
    left = {k: data[k] for k in Recipe.model_fields if k in data and k not in faulty}
    if "arms" in faulty and isinstance(arms, dict):
        sound = {
            name: arm
            for name, arm in arms.items()
            # What another arm's checkpoints are made into needs that one.
            if isinstance(arm, dict) and not arm.get("of")
            and not any(f"{fault.path}.".startswith(f"arms.{name}.") for fault in faults)
        }  # fmt: skip
        if sound and len(sound) < len(arms):
            left["arms"] = sound
    return left


def cross_faults(
    recipe: Recipe, faulty: Collection[str] = (), some_arms: bool = False
) -> list[Fault]:
    """Values that do not go together, but of what rests on sections with faults of their own.

    Args:
        recipe: What is checked.
        faulty: Sections that have faults.
        some_arms: Whether, where `arms` is one of them, the arms here are those that have none:
            then what is wrong with one of these is told as well.
    """
    found = [*own_faults(recipe)]
    for needed, check in _CHECKS:
        among = needed & {*faulty}
        if not among:
            found += check(recipe)
        elif among == {"arms"} and some_arms:
            found += [fault for fault in check(recipe) if fault.path.startswith("arms.")]
    return found


def own_faults(section: Section | None, place: str = "") -> Iterable[Fault]:
    """Values of a section, and of those below it, that do not go together."""
    for key, problem in section.faults() if section else ():
        yield Fault(f"{place}{key}".rstrip("."), problem)
    for name, below in section or ():
        parts = {name: below}
        if isinstance(below, dict):
            parts = {f"{name}.{key}": one for key, one in below.items()}
        elif isinstance(below, list):
            parts = {f"{name}.{index}": one for index, one in enumerate(below)}
        for key, one in parts.items():
            if isinstance(one, Section):
                yield from own_faults(one, f"{place}{key}.")


def _as_written(faults: Iterable[Fault], recipe: Recipe, data: dict[str, Any]) -> list[Fault]:
    """Faults with those of arms that a grid made where the user wrote them, each once."""
    grids = {name: arm["grid"] for name, arm in data["arms"].items() if arm.get("grid")}
    made = {member: name for name in grids for member in recipe.search.families[name]}
    for member, arm in recipe.arms.items():
        if arm.of and member not in data["arms"]:
            made[member] = made.get(arm.of, arm.of)
    told: dict[Any, Fault] = {}
    for fault in faults:
        inside = [member for member in made if fault.path.startswith(f"arms.{member}.")]
        if inside:
            member = max(inside, key=len)
            rest = fault.path.removeprefix(f"arms.{member}")
            within = ".grid" if rest[1:].split(".")[0] in grids.get(made[member], {}) else ""
            if rest == ".of":
                within, rest = ".after", ""
            path = f"arms.{made[member]}{within}{rest}"
            told.setdefault(path, replace(fault, path=path))
        else:
            told.setdefault(fault, fault)
    return list(dict.fromkeys(told.values()))


def _file_faults(data: dict[str, Any], data_dir: Path | None) -> Iterable[Fault]:
    """Files of the user's own tasks that are not there, whatever else is wrong."""
    measure = data.get("measure")
    for side in ("learning", "forgetting"):
        names = measure.get(side) if isinstance(measure, dict) else None
        for place, name in enumerate(names if isinstance(names, list) else []):
            if isinstance(name, str) and is_task_file(name) and task_file(name, data_dir) is None:
                looked = "from here" + (f" and from {data_dir}" if data_dir else "")
                problem = f"names {short(name)}, and there is no such file {looked}; check the path"
                yield Fault(f"measure.{side}.{place}", problem)


def _needs(*sections: str) -> Callable[[Check], Check]:
    """Marks a check, and the sections that must be free of faults for it to mean something."""

    def mark(check: Check) -> Check:
        _CHECKS.append((set(sections), check))
        return check

    return mark


@_needs("train", "search")
def _cohort_faults(recipe: Recipe) -> Iterable[Fault]:
    cohort, sampler = recipe.train.cohort, recipe.search.sampler
    if cohort > 1 and sampler != "grid":
        yield Fault(
            "train.cohort",
            f"is {cohort}, but search.sampler is {sampler}, which draws one rate after another, so "
            "that no runs are trained together; leave it out, or set search.sampler: grid",
        )


@_needs("train", "arms")
def _spread_faults(recipe: Recipe) -> Iterable[Fault]:
    """Dropout over several devices: each would draw its own, and another number other runs."""
    devices = recipe.train.devices
    for name, arm in recipe.arms.items() if devices > 1 else ():
        for key in ("dropout", "attention_dropout", "residual_dropout"):
            if arm.external is None and getattr(arm, key, None):
                yield Fault(
                    f"arms.{name}.{key}",
                    f"is {getattr(arm, key):g}, but train.devices is {devices}: each device would "
                    "draw its own, and the run depend on their number; set it to 0, or "
                    "train.devices to 1",
                )


@_needs("train", "arms", "budget")
def _remedy_faults(recipe: Recipe) -> Iterable[Fault]:
    """Remedies beside several devices, and averages over weights that branch."""
    train, several = recipe.train, len(recipe.budget.listed) > 1
    branches = train.schedule == "trapezoidal" and several and recipe.budget.points == "separate"
    for name, arm in recipe.arms.items():
        if arm.reads_activations and train.devices > 1:
            yield Fault(
                f"arms.{name}.init",
                "starts from the base's activations, which the processes of several devices "
                f"(train.devices: {train.devices}) do not have; set train.devices to 1",
            )
        for place in PLACES if arm.external is None else ():
            remedy, where = arm.remedy(place), f"arms.{name}.{place}"
            if remedy and remedy[0].reads_base and place != "policy" and train.devices > 1:
                yield Fault(
                    where,
                    f"is {getattr(arm, place)}, which asks the base of the same tokens, and that "
                    f"is not spread over devices (train.devices: {train.devices}); leave it out, "
                    "or set train.devices to 1",
                )
            if remedy and place == "average" and branches:
                yield Fault(
                    where,
                    f"is {arm.average}, but a trapezoidal schedule with several budget points "
                    "forks one trunk into branches, and an average goes on over one line of "
                    "steps; use train.schedule: cosine or constant, budget.points: hot, or one "
                    "budget point",
                )


@_needs("base", "arms")
def _dtype_faults(recipe: Recipe) -> Iterable[Fault]:
    """Full finetuning of weights that are held in bfloat16.

    In 50 steps 1.7 to 8.6 % of such weights changed, against 100 % in float32, and the loss rose.
    """
    full = [
        name
        for name, arm in recipe.arms.items()
        if isinstance(arm, FullArm) and arm.external is None
    ]
    if full and recipe.base.dtype == "bfloat16":
        arms = f"arm{'s' * (len(full) > 1)} {', '.join(full)}"
        yield Fault(
            "base.dtype",
            f"is bfloat16, in which full finetuning ({arms}) loses every update below half of a "
            "bfloat16 step of its weight: most weights never change, and the loss may rise. Use "
            "base.dtype: float32 with train.precision: bf16 (float32 master weights, bf16 "
            "arithmetic), or LoRA arms alone, whose adapters are float32 over a bfloat16 base; "
            "beside full arms, LoRA arms may have base_dtype: bfloat16",
        )


@_needs("base", "train", "arms")
def _base_dtype_faults(recipe: Recipe) -> Iterable[Fault]:
    for name, arm in recipe.arms.items():
        held = arm.base_dtype if isinstance(arm, AdapterArm) else None
        if held and recipe.train.precision == "fp32":
            yield Fault(
                f"arms.{name}.base_dtype",
                f"is {held}, so that its layers hand {held} on, but train.precision is fp32; set "
                "that to bf16 or auto, or leave base_dtype out",
            )
        if held and recipe.base.quantization is not None:
            yield Fault(
                f"arms.{name}.base_dtype",
                f"is {held}, but base.quantization is {recipe.base.quantization}, and other four "
                "bits would be trained on than measured; set base.dtype, which is for all arms",
            )


@_needs("base", "train", "arms")
def _quantization_faults(recipe: Recipe) -> Iterable[Fault]:
    if recipe.base.quantization is not None and recipe.train.devices > 1:
        yield Fault(
            "train.devices",
            f"is {recipe.train.devices}, but a base in {recipe.base.quantization} is not spread "
            "over devices; set it to 1, or leave base.quantization out",
        )
    full = [name for name, arm in recipe.arms.items() if isinstance(arm, FullArm)]
    if full and recipe.base.quantization is not None:
        arms = f"arm{'s' * (len(full) > 1)} {', '.join(full)}"
        yield Fault(
            "base.quantization",
            f"is {recipe.base.quantization}, which only adapters are trained on: weights in four "
            f"bits cannot be stepped, and whole models ({arms}) would differ from such a base by "
            "its rounding; leave it out, or give LoRA arms alone",
        )
    for name, arm in recipe.arms.items():
        if isinstance(arm, OftArm) and recipe.base.quantization is not None:
            yield Fault(
                f"arms.{name}.method",
                f"is oft, which is not trained on a base in {recipe.base.quantization}: what is "
                "rotated would have to be rounded again to be merged; take lora, or leave "
                "base.quantization out",
            )


@_needs("arms", "budget", "seeds", "search")
def _external_faults(recipe: Recipe) -> Iterable[Fault]:
    for name, arm in recipe.arms.items():
        if arm.external is None:
            continue
        where = f"arms.{name}"
        if arm.rates_made != set(arm.learning_rates):
            problem = "differ from those of `external`, where each checkpoint has its own"
            yield Fault(f"{where}.learning_rates", f"{problem}; leave them out")
        first = recipe.search.seeds_value == "first"
        if first and all(point.seed != recipe.seeds[0] for point in arm.external):
            problem = f"has no checkpoint of seed {recipe.seeds[0]}, the first of `seeds`, by which"
            yield Fault(f"{where}.external", f"{problem} rates are compared; name its seed there")
        yield from _point_faults(f"{where}.external", arm.external, recipe)


def _point_faults(where: str, made: Sequence[ExternalPoint], recipe: Recipe) -> Iterable[Fault]:
    points, seen = recipe.budget.listed, set()
    for place, point in enumerate(made):
        if point.budget not in points:
            allowed = ", ".join(map(budget_text, points))
            problem = (
                f"{budget_text(point.budget)} is no point of `budget`, which has {allowed}; add it "
                "there"
            )
            yield Fault(f"{where}.{place}.budget", problem)
        if point.seed not in recipe.seeds:
            allowed = ", ".join(map(str, recipe.seeds))
            problem = f"{point.seed} is not among `seeds`, which are {allowed}; add it there"
            yield Fault(f"{where}.{place}.seed", problem)
        key = (point.learning_rate, point.seed, point.budget)
        if key in seen:
            problem = "has the rate, seed and budget of another checkpoint of this arm"
            yield Fault(f"{where}.{place}", problem)
        seen.add(key)


@_needs("arms", "search")
def _after_faults(recipe: Recipe) -> Iterable[Fault]:
    """Arms that are made of another arm's checkpoints."""
    apart = {"of", "change", "factor"}
    for name, arm in recipe.arms.items():
        told = [arm.of, arm.change, arm.factor]
        source = recipe.arms.get(arm.of or "")
        problem = ""
        if told.count(None) not in (0, 3):
            problem = "goes with `of`, `change` and `factor`, all three; `after` writes them"
        elif arm.of is not None and (source is None or not source.is_trained):
            problem = f"names {arm.of}, which is no arm that is trained here"
        elif source and source.model_dump(exclude=apart) != arm.model_dump(exclude=apart):
            problem = f"names {arm.of}, whose settings are others; give the same, or use `after`"
        elif arm.change and (why := arm.unchangeable(arm.change)):
            problem = f"cannot be changed so: {why}"
        elif arm.of is not None and arm.change == "scale" and not arm.factor:
            problem = "would be scaled by 0, which is the base itself; give more"
        elif arm.of is not None and recipe.search.sampler != "grid":
            problem = (
                f"changes finished checkpoints, and search.sampler is {recipe.search.sampler}, "
                "which draws rates by trained arms alone; leave one of the two out"
            )
        if problem:
            yield Fault(f"arms.{name}.of", problem)


@_needs("arms", "search")
def _shared_rate_faults(recipe: Recipe) -> Iterable[Fault]:
    trained = [arm for arm in recipe.arms.values() if arm.is_trained]
    methods = {arm.method for arm in trained}
    grids = {tuple(sorted(arm.learning_rates)) for arm in trained}
    shared = len(methods) > 1 and len(grids) == 1 and len(next(iter(grids))) == 1
    if shared and not recipe.search.allow_shared_rate:
        yield Fault(
            "arms",
            f"{' and '.join(sorted(methods))} would be compared at one shared learning rate, which "
            "misleads (the "
            "best LoRA rate is about ten times the best full rate); give each arm its own "
            "learning_rates, or set search.allow_shared_rate: true",
        )


@_needs("search", "budget")
def _pruner_faults(recipe: Recipe) -> Iterable[Fault]:
    search = recipe.search
    if search.pruner != "none" and (search.sampler == "grid" or len(recipe.budget.listed) == 1):
        what = "grid runs every rate" if search.sampler == "grid" else "there is one budget point"
        problem = f"stops trials of a search at early budget points, but {what}; leave it out"
        yield Fault("search.pruner", problem)


@_needs("arms", "search")
def _family_faults(recipe: Recipe) -> Iterable[Fault]:
    search = recipe.search
    uses = Counter(itertools.chain.from_iterable(search.families.values()))
    for name, family in search.families.items():
        where = f"search.families.{name}"
        unknown = [arm for arm in family if arm not in recipe.arms]
        shared = [arm for arm in family if uses[arm] > 1]
        if unknown or not family:
            listed = ", ".join(unknown) or "no arm"
            yield Fault(where, f"names {listed}; arms are: {', '.join(recipe.arms)}")
        elif shared:
            yield Fault(where, f"names {shared[0]}, which is named twice; keep one")
        elif name in recipe.arms and name not in family:
            yield Fault(where, "is the name of an arm outside the family; rename it")
        else:
            try:
                families_of({arm: recipe.arms[arm] for arm in family}, {name: family})
            except ValueError as error:
                yield Fault(where, str(error))


@_needs("base", "arms", "measure")
def _engine_faults(recipe: Recipe) -> Iterable[Fault]:
    """What vLLM cannot represent, or what it would hold otherwise than it is trained on."""
    base, measure = recipe.base, recipe.measure
    if measure.engine != "vllm":
        return
    if not measure.extras and {*measure.learning, *measure.forgetting} <= {*LOSSES}:
        yield Fault(
            "measure.engine",
            "is vllm, and nothing is asked of it: losses and divergences are measured by Laura's "
            "own engine always; leave it out, or name a benchmark in measure.learning or "
            "measure.forgetting",
        )
    if base.quantization is not None:
        yield Fault(
            "measure.engine",
            f"is vllm, which would measure the base as it is, not in {base.quantization} as it is "
            "trained on; leave it out, or leave base.quantization out",
        )
    if base.dtype == "bfloat16" and measure.precision != "bf16":
        yield Fault(
            "measure.precision",
            f"is {measure.precision or 'fp32 on most devices'}, in which vLLM would hold weights "
            "that the base, in bfloat16, has rounded; set it to bf16, or leave measure.engine out",
        )
    for name, arm in recipe.arms.items():
        if isinstance(arm, OftArm):
            problem = "is oft, and vLLM (measure.engine) takes LoRA"
            yield Fault(f"arms.{name}.method", f"{problem}; leave measure.engine out")
        for key, problem in _vllm_misfits(arm) if isinstance(arm, LoraArm) else ():
            advice = "change it, or leave measure.engine out"
            yield Fault(f"arms.{name}.{key}", f"{problem}; {advice}")


def _vllm_misfits(arm: LoraArm) -> Iterator[tuple[str, str]]:
    """What of an adapter vLLM does not take, by key; `engine/vllm.check_adapter` reads files."""
    rank = arm.file_rank
    if arm.dora:
        yield "dora", "trains lengths, and vLLM (measure.engine) takes plain LoRA"
    if rank > VLLM_RANK:
        double = f", twice {arm.rank} by init: {arm.init}" if rank > arm.rank else ""
        yield "rank", f"makes adapters of rank {rank}{double}, and vLLM takes at most {VLLM_RANK}"
    targets = [] if isinstance(arm.targets, str) or arm.external else arm.targets
    strange = [name for name in targets if name.rsplit(".", 1)[-1] not in VLLM_TARGETS]
    if strange:
        allowed = ", ".join(VLLM_TARGETS)
        yield "targets", f"names {', '.join(strange)}, and vLLM (measure.engine) takes {allowed}"


@_needs("measure", "data")
def _text_faults(recipe: Recipe) -> Iterable[Fault]:
    tasks = {*recipe.measure.learning, *recipe.measure.forgetting}
    needed = (
        ("test", {"target_loss", "kl", "kl_reverse"}),
        ("source_text", {"source_loss", "kl_source", "kl_reverse_source"}),
    )
    for name, users in needed:
        if users & tasks and getattr(recipe.data, name) is None:
            wanting = ", ".join(sorted(users & tasks))
            yield Fault(f"data.{name}", f"is needed by measure: {wanting}")


@_needs("data", "budget")
def _stream_faults(recipe: Recipe) -> Iterable[Fault]:
    """Sources that are read as far as a budget in tokens needs, where none says how far."""
    parts = {name: getattr(recipe.data, name) for name in ("validation", "test", "source_text")}
    if recipe.budget.tokens is None:
        parts["train"] = recipe.data.train
    for name, source in parts.items():
        if source is not None and source.streaming and source.limit is None:
            other = ", or budget.tokens" if name == "train" else ""
            problem = f"is true, but nothing says how far to read; give data.{name}.limit{other}"
            yield Fault(f"data.{name}.streaming", problem)


@_needs("arms", "data")
def _replay_faults(recipe: Recipe) -> Iterable[Fault]:
    users = [name for name, arm in recipe.arms.items() if arm.replay > 0]
    starting = [name for name, arm in recipe.arms.items() if arm.reads_activations]
    for name in starting if not recipe.data.replay else ():
        yield Fault(
            f"arms.{name}.init",
            "starts from the base's activations "
            "on data.replay, and that names no source; add one, such as "
            f"replay: [{{source: {BASE_SAMPLES}, count: 256}}]",
        )
    if recipe.data.replay and not users and not starting:
        yield Fault(
            "data.replay",
            "is used by no arm; give an arm its share of tokens, such as replay: 0.05, or leave "
            "data.replay out",
        )
    for name in users if not recipe.data.replay else ():
        yield Fault(
            f"arms.{name}.replay",
            f"is {recipe.arms[name].replay:g}, but data.replay names no source; add one, such as "
            f"replay: [{{source: c4, limit: 10000}}], or [{{source: {BASE_SAMPLES}, count: 1000}}]",
        )


@_needs("arms", "data")
def _rewrite_faults(recipe: Recipe) -> Iterable[Fault]:
    users = [name for name, arm in recipe.arms.items() if arm.rewritten and arm.is_trained]
    if recipe.data.rewrite and not users:
        problem = "is used by no arm; give one `rewritten: true`, or leave data.rewrite out"
        yield Fault("data.rewrite", problem)
    for name in users if not recipe.data.rewrite else ():
        problem = (
            "is true, but data.rewrite does not say by which grader; add rewrite: {task: gsm8k}"
        )
        yield Fault(f"arms.{name}.rewritten", problem)
    for key, wrong in (
        ("regime", recipe.regime != "instruct" and f"is {recipe.regime}, which has no answers"),
        ("data.train.streaming", recipe.data.train.streaming and "is true, which has no end"),
    ):
        if wrong and recipe.data.rewrite:
            yield Fault(key, f"{wrong} that the base could rewrite; leave data.rewrite out")


@_needs("arms", "data", "train", "measure")
def _policy_faults(recipe: Recipe) -> Iterable[Fault]:
    """What is needed where a model learns its own answers."""
    graders = get_args(RewriteSection.model_fields["task"].annotation)
    for name, arm in recipe.arms.items():
        found, leading = arm.remedy("policy"), recipe.measure.learning[0]
        if found is None or not arm.is_trained:
            continue
        for wrong, words in (
            (recipe.regime != "instruct", f"regime is {recipe.regime}, which asks no questions"),
            (recipe.data.train.streaming, "data.train.streaming is true, which has no end"),
            (recipe.train.devices > 1, f"train.devices is {recipe.train.devices}; set it to 1"),
            (
                not found[0].reads_base and leading not in graders,
                f"measure.learning begins with {leading}, which grades no answer to a training "
                f"row; let it begin with one of {', '.join(graders)}, that of data.train",
            ),
        ):
            if wrong:
                problem = f"is {arm.policy}, for which the model answers questions, but {words}"
                yield Fault(f"arms.{name}.policy", problem)


# ----- what pydantic finds wrong: what came, what is allowed, what to do -----


SectionType = TypeVar("SectionType", bound=Section)


def validate(
    kind: type[SectionType], data: dict[str, Any]
) -> tuple[SectionType | None, list[Fault]]:
    """The section, or every fault pydantic finds in it, in our words."""
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        items = error.errors(include_url=False)
        found = [Fault(_path(item["loc"]), _problem(item, kind)) for item in items]
        return None, list(dict.fromkeys(found))


def _is_method(location: Place, place: int) -> bool:
    """Whether a part is the method by which pydantic chose the kind of an arm."""
    return place == 2 and location[0] == "arms" and location[2] in METHODS


def _path(location: Place) -> str:
    """A place as people write it, `arms.lora.rank`, without the parts that pydantic adds."""
    parts = [str(part) for place, part in enumerate(location) if not _is_method(location, place)]
    added = ("[key]", "literal[", "list[")
    return ".".join(part for part in parts if not part.startswith(added)) or "recipe"


def _problem(item: Any, kind: type[Section]) -> str:
    came = f", came {short(item['input'])}"
    context = item.get("ctx", {})
    match item["type"]:
        case "fault":
            return str(item["msg"])
        case "value_error":
            return str(context.get("error", item["msg"]))
        case "extra_forbidden":
            return _unknown(item["loc"], kind)
        case "missing":
            return "is needed but missing"
        case "union_tag_not_found":
            return "needs a method: full, lora or oft"
        case "union_tag_invalid":
            return f"method must be full, lora or oft, came {short(context.get('tag'))}"
        case "literal_error":
            return f"must be {context['expected']}{came}"
        case "string_pattern_mismatch":
            allowed = "letters, digits, '.', '_' or '-', starting with one of the first two"
            return f"must be {allowed}{came}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a section (key: value){came}"
    message = str(item["msg"]).replace("Input should be", "must be")
    return message[:1].lower() + message[1:] + came


def _unknown(location: Place, kind: type[Section]) -> str:
    """What to write instead of a key that there is not."""
    key = str(location[-1])
    fields = _section_at(location[:-1], kind).model_fields
    allowed = sorted(fields)
    if location[0] == "arms" and "grid" in location[3:-1]:
        if key == "learning_rates":
            return (
                "cannot stand in a grid: give learning_rates beside it; values that need other "
                "rates are an arm of their own"
            )
        if key == "method":
            return "cannot stand in a grid: write an arm for each method"
        allowed = [name for name in allowed if name not in NOT_IN_GRIDS]
    here = f"allowed here: {', '.join(allowed)}"
    owners = [method for method, arm in METHODS.items() if key in arm.model_fields]
    if location[0] == "arms" and owners and key not in fields:
        return f"is a key of {' and '.join(owners)} arms only; {here}"
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"unknown key; {f'did you mean {near[0]}? ' if near else ''}{here}"


def _section_at(location: Place, kind: type[Section]) -> type[Section]:
    """The kind of section that stands at a place: keys are followed, names and indexes passed."""
    for place, part in enumerate(location):
        if _is_method(location, place):
            kind = METHODS[str(part)]
        elif part in kind.model_fields:
            kind = next(_sections(kind.model_fields[str(part)].annotation), kind)
    return kind


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
