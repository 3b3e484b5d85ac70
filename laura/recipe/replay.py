"""What can be wrong in a recipe's replay: sources without an arm, arms without a source, ..."""

from __future__ import annotations

from collections.abc import Iterable

from laura.recipe.sections import BASE_SAMPLES, Recipe, ReplaySource
from laura.results.errors import Fault

SAMPLED_ONLY = ("count", "tokens", "temperature", "prompts", "prompt_tokens")
READ_ONLY = ("split", "subset", "limit")


def replay_use_faults(recipe: Recipe) -> Iterable[Fault]:
    """Sources that no arm uses, and arms that have no source to use."""
    users = [name for name, arm in recipe.arms.items() if arm.replay > 0]
    if recipe.data.replay and not users:
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


def replay_source_faults(recipe: Recipe) -> Iterable[Fault]:
    """Keys that do not go together, sources named twice, and sources that are measured on."""
    data = recipe.data
    measured = {"validation": data.validation, "test": data.test, "source_text": data.source_text}
    places = {_place(source): name for name, source in measured.items() if source}
    seen: list[dict[str, object]] = []
    for number, source in enumerate(data.replay):
        where = f"data.replay.{number}"
        yield from _key_faults(source, where)
        same = source.model_dump(exclude={"weight"})
        if same in seen:
            yield Fault(where, "names a source twice; keep one, with the weights added")
        seen.append(same)
        for read, key in ((source, where), (source.prompts, f"{where}.prompts")):
            if read is not None and _place(read) in places:
                name = places[_place(read)]
                yield Fault(
                    key,
                    f"is data.{name}, and what is measured must not be learnt; choose another "
                    "split or source",
                )


def _key_faults(source: ReplaySource, where: str) -> Iterable[Fault]:
    fields = ReplaySource.model_fields
    given = {name for name in fields if getattr(source, name) != fields[name].default}
    wrong = [name for name in (READ_ONLY if source.is_sampled else SAMPLED_ONLY) if name in given]
    for name in wrong:
        kind = "does not apply to" if source.is_sampled else "is only for"
        yield Fault(f"{where}.{name}", f"{kind} source: {BASE_SAMPLES}; leave it out")
    if source.is_sampled and source.count is None:
        yield Fault(
            f"{where}.count", "is needed: how many texts the base shall write, such as 1000"
        )


def _place(source: object) -> tuple[object, ...]:
    """What tells rows apart whatever their number; `limit` takes the first of the same."""
    return tuple(getattr(source, name) for name in ("source", "split", "subset"))
