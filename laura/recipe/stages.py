"""Settings that continue one another: a series of tasks, learnt one after the other.

An arm carries on: in each stage it has the settings of the stage before, but for what belongs to
a stage's data, its rates and its share of replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from laura.recipe.sections import FullArm, LoraArm, Recipe
from laura.recipe.tasks import LOSSES, result_name
from laura.results.errors import Fault

OF_A_STAGE = {"learning_rates", "replay"}


def stage_faults(recipe: Recipe | None, before: Mapping[str, Recipe | None]) -> list[Fault]:
    """What keeps a setting from continuing another.

    Args:
        recipe: The setting; None where it has faults of its own.
        before: The settings before it in its series; None for those with faults.
    """
    if recipe is None or recipe.continues is None:
        return []
    if recipe.continues not in before:
        listed = ", ".join(before) or "there is none"
        problem = f"names {recipe.continues}, but the settings of the series before it are"
        return [Fault("continues", f"{problem}: {listed}; name one of these, or leave it out")]
    last = before[recipe.continues]
    if last is None:
        return []
    stages = [last, recipe]
    while (earlier := before.get(stages[0].continues or "")) is not None:
        stages.insert(0, earlier)
    return list(dict.fromkeys([*_unlike(recipe, last), *_task_faults(stages)]))


def _unlike(recipe: Recipe, last: Recipe) -> Iterator[Fault]:
    """What the two stages must share and do not, and arms that cannot carry on."""
    if recipe.base != last.base:
        yield Fault("base", f"is not that of {last.name}, whose checkpoints are of its own base")
    if strange := [str(seed) for seed in recipe.seeds if seed not in last.seeds]:
        problem = f"has {', '.join(strange)}, which {last.name} has not; every seed carries on"
        yield Fault("seeds", f"{problem}: give both the same")
    for name, arm in recipe.arms.items():
        where, source = f"arms.{name}", last.arms.get(name)
        if arm.of is not None:
            problem = "changes finished checkpoints, from which no arm carries on"
            yield Fault(f"arms.{arm.of}.after", f"{problem}; leave it out")
        elif arm.external is not None:
            problem = "were made elsewhere, from the base; leave the arm out"
            yield Fault(f"{where}.external", problem)
        elif source is None:
            yield Fault(where, f"is no arm of {last.name}; it has: {', '.join(last.arms)}")
        else:
            mine, theirs = (one.model_dump(exclude=OF_A_STAGE) for one in (arm, source))
            for key in (key for key in mine if theirs.get(key) != mine[key]):
                problem = f"is {mine[key]}, in {last.name} {theirs.get(key)}: an arm carries on"
                yield Fault(f"{where}.{key}", f"{problem} as it is, so give both the same")
        if isinstance(arm, LoraArm) and arm.init != "default":
            problem = f"is {arm.init}: its checkpoints have twice the rank, so none is carried on"
            yield Fault(f"{where}.init", f"{problem}; leave it out")
        if isinstance(arm, FullArm) and arm.weight_decay_toward == "base":
            problem = "is base, but would pull to the stage before, where the run begins"
            yield Fault(f"{where}.weight_decay_toward", f"{problem}; leave it out")


def _task_faults(stages: list[Recipe]) -> Iterator[Fault]:
    """Of the last stage: what it does not learn, or does not measure."""
    *earlier, own = (result_name(stage.measure.learning[0]) for stage in stages)
    for stage in stages if len(stages) == 2 else stages[-1:]:
        lead = stage.measure.learning[0]
        if lead in LOSSES:
            problem = f"is {lead} in {stage.name}, whose documents are other ones in every stage"
            advice = "the first learning task is what a series is judged by: name a benchmark first"
            yield Fault("measure.learning.0", f"{problem}; {advice}")
    if own in earlier and own not in LOSSES:
        problem = f"is {own}, which an earlier stage learns already; every stage has a task of its"
        yield Fault("measure.learning.0", f"{problem} own")
    section = stages[-1].measure
    measured = {result_name(task) for task in (*section.learning, *section.forgetting)}
    if missing := [task for task in earlier if task not in {*measured, *LOSSES}]:
        problem = f"lacks {', '.join(missing)}, which earlier stages learn"
        yield Fault("measure.learning", f"{problem}; name it behind the first")
