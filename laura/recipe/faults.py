"""What can be wrong in a recipe, in words: what came, what is allowed, what to do.

Pydantic finds the faults of single values; the checks between sections are here.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from laura.recipe.arms import ExternalPoint
from laura.recipe.extras import k_problem
from laura.recipe.replay import replay_source_faults, replay_use_faults
from laura.recipe.search import families_of
from laura.recipe.sections import FullArm, LoraArm, MeasureSection, Recipe, Section
from laura.recipe.tasks import TAKEN, is_task_file, result_name, task_file
from laura.results.errors import Fault

DottedPath = tuple[str | int, ...]
SectionType = TypeVar("SectionType", bound=Section)


def validate(
    kind: type[SectionType], data: dict[str, Any]
) -> tuple[SectionType | None, list[Fault]]:
    """The section, or every fault pydantic finds in it, in our words."""
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        return None, [
            Fault(dotted(_clean_location(item["loc"], data, kind)), _problem(item, kind))
            for item in error.errors(include_url=False)
        ]


def cross_faults(data: dict[str, Any], found: list[Fault]) -> list[Fault]:
    """Faults between keys, which one key alone does not show.

    Sections that `found` blames are stood in for, and checks that need them are
    left out, so that one mistake does not hide another.
    """
    faulty = {fault.path.split(".")[0] for fault in found}
    stand_in = {
        "name": "x",
        "base": {"model": "x"},
        "data": {"train": "x"},
        "budget": {"epochs": [1]},
        "arms": {"x": {"method": "full"}},
    }
    rest = {key: data[key] for key in Recipe.model_fields if key in data and key not in faulty}
    recipe, _ = validate(Recipe, {**stand_in, **rest})
    if recipe is None:
        return []
    return [fault for needed, check in _CHECKS if not needed & faulty for fault in check(recipe)]


def file_faults(data: dict[str, Any], data_dir: Path | None) -> Iterable[Fault]:
    """Files of the user's own tasks that are not there, whatever else is wrong.

    Args:
        data: The recipe as it was read, which may hold anything.
        data_dir: Folder that is looked in beside the working directory.
    """
    measure = data.get("measure")
    for side in ("learning", "forgetting"):
        names = measure.get(side) if isinstance(measure, dict) else None
        for place, name in enumerate(names if isinstance(names, list) else []):
            if isinstance(name, str) and is_task_file(name) and task_file(name, data_dir) is None:
                looked = "from here" + (f" and from {data_dir}" if data_dir else "")
                problem = f"names {short(name)}, and there is no such file {looked}; check the path"
                yield Fault(f"measure.{side}.{place}", problem)


def measure_faults(section: MeasureSection) -> Iterable[Fault]:
    """Faults between keys of the `measure` section alone."""
    samples = section.code_samples
    problem = k_problem(section.code_k, samples, "measure.code_samples")
    if problem:
        yield Fault("measure.code_k", problem)
    yield from _extra_faults(section)
    if samples > 1 and section.code_temperature == 0:
        yield Fault(
            "measure.code_temperature",
            f"is 0, so all {samples} samples would be the same program; give a temperature above "
            "0, such as 0.2, or measure.code_samples: 1",
        )


def _extra_faults(section: MeasureSection) -> Iterable[Fault]:
    taken = {*TAKEN, "mean", *map(result_name, [*section.learning, *section.forgetting])}
    for name, extra in section.extras.items():
        where = f"measure.extras.{name}"
        if name in taken:
            yield Fault(where, "is what a task's own result is called; give it another name")
        problem = k_problem(extra.k, extra.samples, "samples")
        if problem:
            yield Fault(f"{where}.k", problem)


def _measure_faults(recipe: Recipe) -> Iterable[Fault]:
    yield from measure_faults(recipe.measure)
    if recipe.measure.engine == "vllm":
        yield Fault(
            "measure.engine",
            "is vllm, which answers in `laura evaluate` only; a comparison measures the model it "
            "trains, in its own process; leave it out, and evaluate the checkpoints afterwards",
        )


def _budget_faults(recipe: Recipe) -> Iterable[Fault]:
    if (recipe.budget.tokens is None) == (recipe.budget.epochs is None):
        yield Fault("budget", "give either tokens or epochs, one of the two")


def _train_faults(recipe: Recipe) -> Iterable[Fault]:
    train = recipe.train
    if train.batch_tokens < train.row_tokens:
        yield Fault(
            "train.batch_tokens",
            f"must hold at least one row: {train.batch_tokens} < row_tokens {train.row_tokens}",
        )
    if train.warmup + (train.cooldown if train.schedule == "trapezoidal" else 0) >= 1:
        yield Fault("train.warmup", "warm-up and cooldown together must leave some steps between")


def _cohort_faults(recipe: Recipe) -> Iterable[Fault]:
    cohort, sampler = recipe.train.cohort, recipe.search.sampler
    if cohort > 1 and sampler != "grid":
        yield Fault(
            "train.cohort",
            f"is {cohort}, but search.sampler is {sampler}, which draws one rate after another, so "
            "that no runs are trained together; leave it out, or set search.sampler: grid",
        )


def _arm_faults(recipe: Recipe) -> Iterable[Fault]:
    for name, arm in recipe.arms.items():
        where = f"arms.{name}"
        if len(set(arm.learning_rates)) != len(arm.learning_rates):
            yield Fault(f"{where}.learning_rates", "names a rate twice")
        for key, problem in arm.faults():
            yield Fault(f"{where}.{key}", problem)


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
            "arithmetic), or LoRA arms alone, whose adapters are float32 over a bfloat16 base",
        )


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
    points, seen = recipe.budget.tokens or recipe.budget.epochs or [], set()
    for place, point in enumerate(made):
        if point.budget not in points:
            allowed = ", ".join(f"{one:g}" for one in points)
            problem = f"{point.budget:g} is no point of `budget`, which has {allowed}; add it there"
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


def _shared_rate_faults(recipe: Recipe) -> Iterable[Fault]:
    trained = [arm for arm in recipe.arms.values() if arm.external is None]
    methods = {arm.method for arm in trained}
    grids = {tuple(sorted(arm.learning_rates)) for arm in trained}
    shared = len(methods) > 1 and len(grids) == 1 and len(next(iter(grids))) == 1
    if shared and not recipe.search.allow_shared_rate:
        yield Fault(
            "arms",
            "full and lora would be compared at one shared learning rate, which misleads (the "
            "best LoRA rate is about ten times the best full rate); give each arm its own "
            "learning_rates, or set search.allow_shared_rate: true",
        )


def _pruner_faults(recipe: Recipe) -> Iterable[Fault]:
    search, points = recipe.search, recipe.budget.tokens or recipe.budget.epochs or []
    if search.pruner != "none" and (search.sampler == "grid" or len(points) == 1):
        what = "grid runs every rate" if search.sampler == "grid" else "there is one budget point"
        problem = f"stops trials of a search at early budget points, but {what}; leave it out"
        yield Fault("search.pruner", problem)


def _seed_rule_faults(recipe: Recipe) -> Iterable[Fault]:
    search = recipe.search
    if search.seeds == "all" and search.sampler != "grid":
        yield Fault(
            "search.seeds",
            f"is all, but search.sampler is {search.sampler}, whose trials are drawn by what the "
            "first seed came to and so stand for no other; set search.seeds: first, or leave it "
            "out, or set search.sampler: grid",
        )


def _family_faults(recipe: Recipe) -> Iterable[Fault]:
    search = recipe.search
    members = [arm for family in search.families.values() for arm in family]
    for name, family in search.families.items():
        where = f"search.families.{name}"
        unknown = [arm for arm in family if arm not in recipe.arms]
        shared = [arm for arm in family if members.count(arm) > 1]
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


def _seed_faults(recipe: Recipe) -> Iterable[Fault]:
    if len(set(recipe.seeds)) != len(recipe.seeds):
        yield Fault("seeds", "names a seed twice")


def _task_faults(recipe: Recipe) -> Iterable[Fault]:
    tasks = [*recipe.measure.learning, *recipe.measure.forgetting]
    if len(set(tasks)) != len(tasks):
        yield Fault("measure", "names a task twice")
        return
    by_result: dict[str, list[str]] = {}
    for task in tasks:
        by_result.setdefault(result_name(task), []).append(task)
    for name, alike in by_result.items():
        if len(alike) > 1:
            problem = f"{' and '.join(alike)} would both be called {name}; rename a file"
            yield Fault("measure", problem)


def _text_faults(recipe: Recipe) -> Iterable[Fault]:
    tasks = {*recipe.measure.learning, *recipe.measure.forgetting}
    wants_test = {"target_loss", "kl", "kl_reverse"} & tasks
    if wants_test and recipe.data.test is None:
        yield Fault("data.test", f"is needed by measure: {', '.join(sorted(wants_test))}")
    wants_text = {"source_loss", "kl_source", "kl_reverse_source"} & tasks
    if wants_text and recipe.data.source_text is None:
        yield Fault("data.source_text", f"is needed by measure: {', '.join(sorted(wants_text))}")


def _analysis_faults(recipe: Recipe) -> Iterable[Fault]:
    if recipe.analysis.intruders and recipe.analysis.spectra == "none":
        yield Fault(
            "analysis.intruders",
            "are counted where spectra are taken, and analysis.spectra is none; set it to final "
            "or all",
        )


# Each check, and the sections that must be free of faults for it to mean something.
_CHECKS: tuple[tuple[set[str], Callable[[Recipe], Iterable[Fault]]], ...] = (
    ({"budget"}, _budget_faults),
    ({"train"}, _train_faults),
    ({"train", "search"}, _cohort_faults),
    ({"arms"}, _arm_faults),
    ({"base", "arms"}, _dtype_faults),
    ({"arms", "budget", "seeds", "search"}, _external_faults),
    ({"search"}, _seed_rule_faults),
    ({"arms", "search"}, _shared_rate_faults),
    ({"search", "budget"}, _pruner_faults),
    ({"arms", "search"}, _family_faults),
    ({"seeds"}, _seed_faults),
    ({"measure"}, _measure_faults),
    ({"measure"}, _task_faults),
    ({"measure", "data"}, _text_faults),
    ({"arms", "data"}, replay_use_faults),
    ({"data"}, replay_source_faults),
    ({"analysis"}, _analysis_faults),
)


def _clean_location(
    location: tuple[int | str, ...], data: Any, section: type[Section]
) -> DottedPath:
    """Drop the parts pydantic adds for unions, which are not in the user's file."""
    clean: list[str | int] = []
    place: Any = data
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if isinstance(place, dict) and part in place:
            place = place[part]
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        elif part == "[key]":
            continue
        elif not last or not _may_be_absent(place, part, section):
            continue
        clean.append(part)
    return tuple(clean)


def _may_be_absent(place: Any, part: int | str, section: type[Section]) -> bool:
    """Whether a fault can be about something that the user did not write."""
    if not isinstance(place, dict):
        return isinstance(place, list) and isinstance(part, int)
    schema = _schema(section)
    below = [d for d in schema.get("$defs", {}).values() if "properties" in d]
    return any(part in known["properties"] for known in [schema, *below])


@cache
def _schema(kind: type[Section]) -> dict[str, Any]:
    return kind.model_json_schema()


def _problem(item: Any, section: type[Section]) -> str:
    came = f", came {short(item['input'])}"
    kind = item["type"]
    context = item.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(item["loc"][-1])
        allowed = _allowed_keys(item["loc"], _schema(section))
        for method, arm in (("full", FullArm), ("lora", LoraArm)):
            if item["loc"][0] == "arms" and key in arm.model_fields:
                return f"is a key of {method} arms only; allowed here: {', '.join(allowed)}"
        near = difflib.get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key; {hint}allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return "is needed but missing"
    if kind == "union_tag_not_found":
        return "needs a method: full or lora"
    if kind == "union_tag_invalid":
        return f"method must be full or lora, came {short(context.get('tag'))}"
    if kind == "literal_error":
        return f"must be {context['expected']}{came}"
    if kind == "string_pattern_mismatch":
        return f"must be letters, digits, '.', '_' or '-', starting with one of the first two{came}"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"must be a section (key: value){came}"
    message = str(item["msg"]).replace("Input should be", "must be")
    return message[:1].lower() + message[1:] + came


def _allowed_keys(location: tuple[int | str, ...], schema: dict[str, Any]) -> list[str]:
    place: Any = schema
    for part in location[:-1]:
        place = _below(place, part, schema)
        if place is None:
            return sorted(schema["properties"])
    return sorted(place.get("properties", schema["properties"]))


def _below(place: Any, part: int | str, schema: Any) -> Any:
    mapping = place.get("discriminator", {}).get("mapping", {})
    if part in mapping:
        return _resolve({"$ref": mapping[part]}, schema)
    if part in place.get("properties", {}):
        return _resolve(place["properties"][part], schema)
    if isinstance(part, int) and "items" in place:
        return _resolve(place["items"], schema)
    patterns = place.get("patternProperties", {})
    extra = next(iter(patterns.values()), place.get("additionalProperties"))
    return _resolve(extra, schema) if isinstance(extra, dict) else place


def _resolve(place: Any, schema: Any) -> Any:
    if "anyOf" in place:
        place = next((choice for choice in place["anyOf"] if "$ref" in choice), place)
    if "$ref" in place:
        return schema["$defs"][place["$ref"].rsplit("/", 1)[1]]
    return place


def dotted(path: DottedPath) -> str:
    """A path as people write it, `arms.lora.rank`."""
    return ".".join(str(part) for part in path) or "recipe"


def short(value: object) -> str:
    """A value as it came, in at most about sixty characters."""
    try:
        text = _REPR.repr(value)
    except ValueError:
        return "a number too long to show"
    return text if len(text) <= 60 else text[:57] + "..."


_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxother, _REPR.maxlevel, _REPR.maxlong = 60, 60, 3, 40
