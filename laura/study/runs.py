"""Which runs a recipe asks for, which go together, which confirm, what run.json says of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

from laura.data.mixing import Dealt
from laura.recipe.search import grid_seeds, reachable_rates
from laura.recipe.sections import METHODS, AdapterArm, Arm, BudgetSection, ExternalPoint, Recipe
from laura.results.errors import StoreError, UsageError
from laura.results.store import RunStore, read_json
from laura.study.evidence import Choice
from laura.training.batches import BatchPlan


@dataclass(frozen=True)
class RunSpec:
    """What determines a run, before anything is computed.

    Attributes:
        arm: Name of the arm.
        learning_rate: Peak rate.
        seed: Seed.
        budget: Its budget points; one only where points are separate runs.
    """

    arm: str
    learning_rate: float
    seed: int
    budget: BudgetSection


def external_points(arm: Arm, learning_rate: float, seed: int) -> list[ExternalPoint]:
    """The checkpoints of one rate and seed of an arm that was made elsewhere."""
    return [p for p in arm.external or [] if (p.learning_rate, p.seed) == (learning_rate, seed)]


def with_points(budget: BudgetSection, points: Sequence[float]) -> BudgetSection:
    """The same budget with these of its points only."""
    return budget.model_copy(update={"tokens" if budget.tokens else "epochs": list(points)})


def separate(recipe: Recipe) -> bool:
    """Whether every budget point is a run of its own."""
    return recipe.budget.points == "separate" and recipe.train.schedule == "cosine"


def specs_of(recipe: Recipe, arm: str, learning_rate: float, seed: int) -> list[RunSpec]:
    """The runs that one arm at one rate with one seed takes: one, or one a budget."""
    budget, points = recipe.budget, recipe.budget.listed
    if recipe.arms[arm].external is not None:
        made = external_points(recipe.arms[arm], learning_rate, seed)
        reached = {one.budget for one in made}
        points = [point for point in points if point in reached]
        return [RunSpec(arm, learning_rate, seed, with_points(budget, points))] if points else []
    if not separate(recipe) or len(points) == 1:
        return [RunSpec(arm, learning_rate, seed, budget)]
    parts = [with_points(budget, [point]) for point in points]
    return [RunSpec(arm, learning_rate, seed, part) for part in parts]


def changed_arms(recipe: Recipe, arm: str) -> list[str]:
    """The arms that are made of an arm's checkpoints."""
    return [name for name, one in recipe.arms.items() if one.of == arm]


def runs_each(recipe: Recipe) -> int:
    """How many runs `specs_of` gives for an arm that is trained."""
    return len(recipe.budget.listed) if separate(recipe) else 1


def grid_of(recipe: Recipe, rates: Mapping[str, Sequence[float]] | None = None) -> list[RunSpec]:
    """The runs that every study begins with, seed by seed; one rate where a search draws them.

    Args:
        recipe: The recipe.
        rates: Other rates of each arm than the recipe's.
    """
    drawn = recipe.search.sampler != "grid"
    if rates is None:
        rates = {
            name: sorted(arm.learning_rates)[: 1 if drawn and arm.external is None else None]
            for name, arm in recipe.arms.items()
        }
    return [
        spec
        for seed in grid_seeds(recipe.seeds, recipe.search)
        for name in recipe.arms
        if recipe.arms[name].of is None
        for rate in rates[name]
        for spec in specs_of(recipe, name, rate, seed)
    ]


def further_seeds(recipe: Recipe) -> list[int]:
    """The seeds that are run at each arm's best rate alone."""
    return recipe.seeds[len(grid_seeds(recipe.seeds, recipe.search)) :]


def cohorts(specs: Iterable[RunSpec], recipe: Recipe, workers: int = 1) -> list[list[RunSpec]]:
    """The runs in groups that are trained together, in the order of their first ones.

    Runs of adapters go together that share arm, seed and budget and so differ in the learning
    rate alone, at most `train.cohort` of them; `training/cohort.py` says how. More are shared
    out evenly: nine with at most eight are five and four. No worker shall wait while another
    has a cohort, so they are also shared out among the workers.
    """
    if recipe.train.cohort == 1:
        return [[spec] for spec in specs]
    alike: dict[tuple[str, int, str] | int, list[RunSpec]] = {}
    for number, spec in enumerate(specs):
        arm = recipe.arms[spec.arm]
        # What a model answers is its own.
        alone = arm.external is not None or arm.remedy("policy") is not None
        adapter = isinstance(arm, AdapterArm) and not alone
        shared = (spec.arm, spec.seed, spec.budget.model_dump_json())
        alike.setdefault(shared if adapter else number, []).append(spec)
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


# ----- confirming -----
# An arm at a rate, run with seeds that had no part in its choice: what one seed chose among many
# is flattered by the choice, fresh seeds are not (`Evidence.confirming`).

FRESH_SEEDS = 3
Configuration = tuple[str, float]  # arm and peak rate


def read_configurations(texts: Sequence[str]) -> list[Configuration]:
    """What `--confirm ARM@RATE` was given, in order, each once.

    Raises:
        UsageError: one is not written so.
    """
    found = []
    for text in texts:
        arm, _, rate = text.rpartition("@")
        try:
            found.append((arm, float(rate)))
        except ValueError:
            arm = ""
        if not arm:
            raise UsageError(
                f"--confirm wants an arm and a learning rate, as in --confirm full@2.5e-4; "
                f"came {text!r}"
            )
    return list(dict.fromkeys(found))


def check_configurations(wanted: Sequence[Configuration], seeds: int, recipe: Recipe) -> None:
    """Find what can never be confirmed in a study of this recipe, before anything is run.

    Raises:
        UsageError: no such arm or rate, or an arm made elsewhere; what is allowed is told.
    """
    if seeds < 1:
        raise UsageError(f"--confirm-seeds must be at least 1, came {seeds}")
    for arm, rate in wanted:
        what = f"--confirm {arm}@{rate:g}"
        if arm not in recipe.arms:
            raise UsageError(f"{what}: the recipe has no such arm; it has {', '.join(recipe.arms)}")
        given = recipe.arms[arm]
        if given.external is not None:
            raise UsageError(f"{what}: its checkpoints were made elsewhere, so none can be added")
        if given.of is not None:
            raise UsageError(f"{what}: it is made of {given.of}'s checkpoints; confirm {given.of}")
        if recipe.search.sampler == "grid":
            allowed = reachable_rates(given, recipe.search)
            if rate not in allowed:
                raise UsageError(f"{what}: {arm} is run at {_listed(allowed)}; give one of these")
        elif not min(given.learning_rates) <= rate <= max(given.learning_rates):
            ends = f"{min(given.learning_rates):g} and {max(given.learning_rates):g}"
            raise UsageError(f"{what}: rates of {arm} are drawn between {ends}; give one that was")


def check_run(wanted: Sequence[Configuration], choices: Mapping[str, Choice]) -> None:
    """Refuse a rate that the study could have come to and did not.

    Raises:
        UsageError: as said; the rates that were run are told.
    """
    for arm, rate in wanted:
        if rate not in choices[arm].rates:
            rates = _listed(choices[arm].rates) or "no rate"
            raise UsageError(
                f"--confirm {arm}@{rate:g}: {arm} was run at {rates}; confirm one of these"
            )


def fresh_seeds(recipe: Recipe, count: int) -> list[int]:
    """The smallest seeds that are not the recipe's."""
    unused = (seed for seed in itertools.count() if seed not in recipe.seeds)
    return list(itertools.islice(unused, count))


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


# ----- records -----

_NEEDED = {"id", "arm", "learning_rate", "seed", "points"}
# Told apart by the run's rate, and by the sources beside the share.
_APART = {"learning_rates", "replay"}
# Keys of `train` that change how a run is carried out, saved and looked at, not what it becomes.
UNTRAINED = frozenset({"checkpoint_minutes", "cohort", "devices", "recompute", "validate_every"})


def budget_marks(plan: BatchPlan, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Where a run is at each budget point: steps, tokens, and with replay its `mix`.

    Args:
        plan: The run's batches.
        budgets: Its budget points, in tokens or epochs.
    """
    marks: list[dict[str, Any]] = []
    for budget, step in zip(budgets, plan.points, strict=True):
        mark = {
            "budget": budget,
            "step": step,
            "tokens": plan.tokens[step],
            "supervised_tokens": plan.supervised[step],
        }
        mix = {"mix": mix_record(plan.mix[len(marks)])} if plan.mix else {}
        marks.append({**mark, **mix})
    return marks


def read_record(run: RunStore) -> dict[str, Any] | None:
    """A run's run.json; None where there is none.

    Raises:
        StoreError: it is damaged.
    """
    path = run.folder / "run.json"
    if not path.is_file():
        return None
    known = read_json(path)
    if not isinstance(known, dict) or not known.keys() >= _NEEDED or not known["points"]:
        raise StoreError(f"{path} does not describe a run; delete {run.folder} and run again")
    return known


def is_of(record: dict[str, Any], recipe: Recipe, facts: dict[str, Any]) -> bool:
    """Whether a run was trained as a recipe describes it now, which may have changed since.

    What a run's record does not say, as that of a Trainer's run, is taken to be as it was.

    Args:
        record: Its run.json.
        recipe: The recipe.
        facts: The study's `study.json`.
    """
    arm = recipe.arms.get(record["arm"])
    if arm is None:
        return False
    identity, train = record.get("identity", {}), recipe.train
    held = identity.get("dtype"), identity.get("quantization")
    if "dtype" in identity and held != (recipe.base.dtype, recipe.base.quantization):
        return False
    template = template_identity(recipe)
    if identity.get("template", template) != template:
        return False
    wanted = {"fraction": arm.replay, "sources": facts.get("replay")} if arm.replay else None
    read = facts.get("replay") if arm.reads_activations else None
    written = facts.get("rewrite") if arm.rewritten else None
    if identity.get("replay") != wanted or identity.get("rewrite", written) != written:
        return False
    if identity.get("grader") != grader_of(recipe, arm):
        return False
    if identity.get("activations", read) != read:
        return False
    if recipe.continues or "continues" in identity:
        begun = facts.get("continues", {}).get(record["arm"], {}).get(str(record["seed"]))
        if begun is None or identity.get("continues") != begun:
            return False
    if identity.get("train"):
        # What `auto` precision came to is the machine's affair.
        known = {k: v for k, v in identity["train"].items() if k != "precision"}
        if known != train.identity({*UNTRAINED, "precision"}):
            return False
    _, trained = identity.get("arm", ("", None))
    return trained is None or _settings(trained) == _settings(arm.model_dump(mode="json"))


def grader_of(recipe: Recipe, arm: Arm) -> str | None:
    """The task by which an arm's own answers are graded; None where they are not."""
    found = arm.remedy("policy")
    return recipe.measure.learning[0] if found and not found[0].reads_base else None


def template_identity(recipe: Recipe) -> list[str]:
    """What of a recipe decides how examples become the documents that are trained on."""
    return [recipe.data.template, recipe.data.overlong, recipe.regime]


def _settings(arm: dict[str, Any]) -> dict[str, Any] | None:
    """An arm's settings, with what was not yet known of arms when a run was recorded."""
    known = {name: value for name, value in arm.items() if name not in _APART}
    try:
        kind = METHODS[known.get("method", "full")]
        return kind.model_validate(known).model_dump(mode="json", exclude=_APART)
    except (KeyError, ValueError):  # of a version of Laura that knew other settings
        return None


def mix_record(dealt: Sequence[Dealt]) -> dict[str, Any]:
    """What was read up to a budget point.

    Args:
        dealt: Of the target, and then of every source of replay.

    Returns:
        `{"target_tokens", "replay_tokens", "replay_share", "sources": [{"source", "tokens",
        "supervised_tokens", "documents", "repeats"}]}`, the target first among the sources.
        The share is one of all tokens; `repeats` counts how often a source was begun anew.
    """
    target, *others = (one.tokens for one in dealt)
    return {
        "target_tokens": target,
        "replay_tokens": sum(others),
        "replay_share": sum(others) / (target + sum(others)),
        "sources": [
            {
                "source": one.name,
                "tokens": one.tokens,
                "supervised_tokens": one.supervised,
                "documents": one.documents,
                "repeats": one.repeats,
            }
            for one in dealt
        ],
    }


def repeat_caveats(mixes: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Sentences on replay sources that were used up and begun again.

    Args:
        mixes: Arm and `mix_record` of each measured point.
    """
    most: dict[tuple[str, str], int] = {}
    for arm, mix in mixes:
        for source in mix.get("sources", [])[1:]:
            key = (arm, source["source"])
            most[key] = max(most.get(key, 0), source["repeats"])
    return [
        f"{arm} used up the replay source {source} and began it anew "
        f"{'once' if repeats == 1 else f'{repeats} times'}."
        for (arm, source), repeats in most.items()
        if repeats
    ]
