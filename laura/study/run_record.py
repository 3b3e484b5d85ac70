"""What run.json says of each budget point, and what the verdict says of it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from laura.data.mixing import Dealt
from laura.recipe.sections import FullArm, LoraArm, Recipe
from laura.results.errors import StoreError
from laura.results.store import RunStore, read_json
from laura.training.batches import BatchPlan

_NEEDED = {"id", "arm", "learning_rate", "seed", "points"}
# Told apart by the run's rate, and by the sources beside the share.
_APART = {"learning_rates", "replay"}
# Keys of `train` that change how a run is carried out, saved and looked at, not what it becomes.
UNTRAINED = frozenset({"checkpoint_minutes", "cohort", "validate_every"})


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
    if identity.get("dtype", recipe.base.dtype) != recipe.base.dtype:
        return False
    template = template_identity(recipe)
    if identity.get("template", template) != template:
        return False
    wanted = {"fraction": arm.replay, "sources": facts.get("replay")} if arm.replay else None
    if identity.get("replay") != wanted:
        return False
    if identity.get("train"):
        # What `auto` precision came to is the machine's affair.
        known = {k: v for k, v in identity["train"].items() if k != "precision"}
        if known != train.identity({*UNTRAINED, "precision"}):
            return False
    _, trained = identity.get("arm", ("", None))
    return trained is None or _settings(trained) == _settings(arm.model_dump(mode="json"))


def template_identity(recipe: Recipe) -> list[str]:
    """What of a recipe decides how examples become the documents that are trained on."""
    return [recipe.data.template, recipe.data.overlong, recipe.regime]


def _settings(arm: dict[str, Any]) -> dict[str, Any] | None:
    """An arm's settings, with what was not yet known of arms when a run was recorded."""
    known = {name: value for name, value in arm.items() if name not in _APART}
    try:
        kind = LoraArm if known.get("method") == "lora" else FullArm
        return kind.model_validate(known).model_dump(mode="json", exclude=_APART)
    except ValueError:  # of a version of Laura that knew other settings
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
