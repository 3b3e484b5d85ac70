"""Which configuration to take, judged from what was run, with the evidence for it. No torch.

A configuration is an arm at a learning rate and a budget that was trained with enough
seeds; nothing is interpolated. Learning is the gain on the leading learning task,
forgetting the loss of the mean of the accuracies (or of the first forgetting task), both
against the base and paired by item, with the errors over items and seeds of `effects.py`.

**A bound must hold for the whole interval**: forgetting counts by its upper end, learning
by its lower one.

**Choosing is allowed for.** The best of m configurations, chosen on the items that also
tell how good it is, looks better than it is. So intervals are simultaneous (Bonferroni): each
of the m configurations has two, of learning and of forgetting, at the level 1 - 0.05 / 2m,
and together all hold with 95 % whichever is chosen. The estimates in their middle are not
shrunk: expect the winner a little below its own.

**Who has learnt nothing is not recommended**: without another bound, learning must surely
be above 0, or the base itself would be the best answer to a bound on forgetting.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.errors import EvidenceError, UsageError
from laura.store import read_json
from laura.study.claims.judgement import read_study
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Setting
from laura.study.effects import ALPHA, MIN_ITEMS, MIN_SEEDS, Effect, TooThin, contrast, count
from laura.study.summary import Point
from laura.study.untried import untried

RECOMMENDED, NOT_MET = "recommended", "not met"
ALTERNATIVES, SHOWN = 3, 4


@dataclass(frozen=True)
class Wish:
    """What the user asks for.

    Attributes:
        max_forgetting: Forgetting at most, in the unit of the measure (0.02 of a share).
        min_learning: Gain in learning at least, in its unit; None for anything above 0.
        memory_bytes: Peak memory of training at most, as measured where the study ran.
        seeds: Seeds a configuration needs to be considered.
        arm: Only this arm; None for all.
    """

    max_forgetting: float | None = None
    min_learning: float | None = None
    memory_bytes: int | None = None
    seeds: int = MIN_SEEDS
    arm: str | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A configuration that was run.

    Attributes:
        arm: The arm.
        learning_rate: Peak rate.
        budget: Tokens or epochs.
        points: Its measured points by seed, in the recipe's order of seeds.
        learning: Gain over the base; above zero where something was learnt.
        forgetting: Loss against the base; above zero where something was forgotten.
        cost: What a run took, as measured; empty where that is not known.
    """

    arm: Kind
    learning_rate: float
    budget: float
    points: Mapping[int, Point]
    learning: Effect
    forgetting: Effect
    cost: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """What was decided, and by what.

    Attributes:
        state: `recommended`, or `not met` where the evidence suffices and no
            configuration keeps the bounds.
        chosen: The configuration; None when not met.
        others: Nearest alternatives, each with why it was not chosen.
        candidates: How many were judged.
        level: Level of the simultaneous intervals.
        not_tried: What the study leaves open, in words.
        wish: What was asked.
        setting: The study.
    """

    state: str
    chosen: Candidate | None
    others: list[tuple[Candidate, str]]
    candidates: int
    level: float
    not_tried: list[str]
    wish: Wish
    setting: Setting


def recommend(study: Path, wish: Wish) -> Decision:
    """Choose among the configurations of a study.

    With a bound on forgetting, the one that learns most within it; with a bound on
    learning alone, the one that forgets least.

    Raises:
        EvidenceError: the study is too thin to say; the message says what to run.
        UsageError: no bound is given, one is no number, or there is no such arm.
        StoreError: the folder holds no study.
    """
    _check(wish)
    setting = Setting(*_read(study))
    if wish.arm is not None and wish.arm not in setting.evidence.recipe.arms:
        known = ", ".join(setting.evidence.recipe.arms)
        raise UsageError(f"the study has no arm {wish.arm!r}; it has: {known}")
    found, thin = _candidates(study, setting, wish)
    if not found:
        raise EvidenceError(_too_thin(study, setting, wish, thin))
    if wish.memory_bytes is not None:
        found = _within_memory(found, wish.memory_bytes)
    level = 1 - ALPHA / (2 * len(found))  # both sides of each are told
    fits = [one for one in found if not _breaks(one, wish, level)]
    # By forgetting alone only where nothing bounds it.
    if wish.max_forgetting is None:
        order = sorted(found, key=lambda one: (one.forgetting.value, -one.learning.value))
    else:
        order = sorted(found, key=lambda one: (-one.learning.value, one.forgetting.value))
    chosen = next((one for one in order if one in fits), None)
    rest = [one for one in order if one is not chosen]
    if chosen is None:
        rest.sort(key=lambda one: _excess(one, wish, level))
    others = [(one, _why_not(one, wish, level)) for one in rest[:ALTERNATIVES]]
    state = NOT_MET if chosen is None else RECOMMENDED
    gaps = untried(setting, chosen.arm if chosen else None, chosen.budget if chosen else None)
    return Decision(state, chosen, others, len(found), level, gaps + _short(thin), wish, setting)


def not_met_text(decision: Decision) -> str:
    """Why nothing is recommended, and what comes nearest, in plain words."""
    nearest, why = decision.others[0]
    return (
        f"none of the {decision.candidates} configurations with {decision.wish.seeds} seeds or "
        f"more keeps what is asked. Nearest: {describe(nearest)}: {why}. Try lower rates, a "
        "smaller budget, a lower rank or replay; with more seeds or items the intervals narrow"
    )


def describe(candidate: Candidate) -> str:
    """A configuration in a few words."""
    rate, budget = f"{candidate.learning_rate:g}", f"{candidate.budget:,g}"
    return f"{candidate.arm.name}, learning rate {rate}, budget {budget}"


def _read(study: Path) -> tuple[str, Any, dict[str, Any]]:
    name, evidence, analysis = read_study(study)
    return name, evidence, analysis.model_dump(mode="json") if analysis else {}


def _check(wish: Wish) -> None:
    bounds = {"--max-forgetting": wish.max_forgetting, "--min-learning": wish.min_learning}
    if all(value is None for value in bounds.values()):
        raise UsageError(
            "say what is wanted: --max-forgetting X (at most so much is forgotten), "
            "--min-learning Y (at least so much is learnt), or both"
        )
    for option, value in bounds.items():
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{option} needs a finite number, came {value}")
    if wish.seeds < 2:
        raise UsageError(
            f"--seeds-at-least must be 2 or more, came {wish.seeds}; one seed says nothing of "
            "how much seeds differ"
        )


def _candidates(study: Path, setting: Setting, wish: Wish) -> tuple[list[Candidate], list[str]]:
    """What can be judged, and in words what cannot."""
    kinds = {arm.name: arm for arm in setting.arms}
    grouped: dict[tuple[str, float, float], dict[int, Point]] = {}
    for point in setting.evidence.points:
        if point.arm == (wish.arm or point.arm):
            key = (point.arm, point.learning_rate, point.budget)
            grouped.setdefault(key, {})[point.seed] = point
    costs = _costs(study)
    found, thin = [], []
    for (arm, rate, budget), by_seed in grouped.items():
        points = {s: by_seed[s] for s in setting.evidence.recipe.seeds if s in by_seed}
        try:
            gains = [_gain(setting, arm, points, m, wish.seeds) for m in (LEARNING, FORGETTING)]
        except TooThin as reason:
            thin.append(f"{arm} at {rate:g}, budget {budget:,g}, was not considered: {reason}")
            continue
        cost = _cost(points, costs)
        found.append(
            Candidate(kinds[arm], rate, budget, points, gains[0], gains[1].scaled(-1.0), cost)
        )
    return found, thin


def _gain(
    setting: Setting, arm: str, points: Mapping[int, Point], measure: str, seeds: int
) -> Effect:
    tuned = setting.scores(1.0, {s: p.results for s, p in points.items()}, measure, arm)
    base = setting.scores(-1.0, setting.base_results, measure, "the base")
    return contrast([tuned, base], seeds)


def _within_memory(found: list[Candidate], limit: int) -> list[Candidate]:
    unknown = [one for one in found if not one.cost.get("peak_memory_bytes")]
    if unknown:
        raise EvidenceError(
            f"the peak memory of {describe(unknown[0])} was not measured, so --memory cannot be "
            "kept; leave it out, or run the study again in another folder"
        )
    fits = [one for one in found if one.cost["peak_memory_bytes"] <= limit]
    if not fits:
        least = min(found, key=lambda one: float(one.cost["peak_memory_bytes"]))
        raise EvidenceError(
            f"nothing that was run stayed within {limit / 1e9:.3g} GB; the least was "
            f"{least.cost['peak_memory_bytes'] / 1e9:.3g} GB with {describe(least)}. Lower "
            "train.rows_per_pass or train.row_tokens, or try LoRA of a lower rank"
        )
    return fits


def _breaks(one: Candidate, wish: Wish, level: float) -> list[str]:
    """Which bounds a configuration does not surely keep, in words."""
    broken = []
    if wish.max_forgetting is not None:
        low, high = one.forgetting.interval(level)
        if high > wish.max_forgetting:
            sure = "forgets more than" if low > wish.max_forgetting else "may forget more than"
            broken.append(f"it {sure} {wish.max_forgetting:g} (up to {high:+.3g})")
    low, high = one.learning.interval(level)
    if wish.min_learning is None:
        if low <= 0:
            broken.append(f"it may have learnt nothing (from {low:+.3g})")
    elif low < wish.min_learning:
        sure = "learns less than" if high < wish.min_learning else "may learn less than"
        broken.append(f"it {sure} {wish.min_learning:g} (from {low:+.3g})")
    return broken


def _excess(one: Candidate, wish: Wish, level: float) -> float:
    """How far a configuration is from keeping the bounds; 0 when it does."""
    over = 0.0
    if wish.max_forgetting is not None:
        over += max(0.0, one.forgetting.interval(level)[1] - wish.max_forgetting)
    return over + max(0.0, (wish.min_learning or 0.0) - one.learning.interval(level)[0])


def _why_not(one: Candidate, wish: Wish, level: float) -> str:
    broken = _breaks(one, wish, level)
    if broken:
        return " and ".join(broken)
    return "it forgets more" if wish.max_forgetting is None else "it learns less"


def _too_thin(study: Path, setting: Setting, wish: Wish, thin: list[str]) -> str:
    recipe = setting.evidence.recipe
    seeds = list(recipe.seeds)  # those that ran stay, and the first stays the grid's
    seeds += [new for new in range(wish.seeds + len(seeds)) if new not in seeds]
    seeds = seeds[: max(wish.seeds, len(recipe.seeds))]
    command = (
        f"laura compare {shlex.quote(str(study / 'recipe.yaml'))} "
        f"--out {shlex.quote(str(study))} --set 'seeds={seeds}'"
    )
    told = "; ".join(_short(thin)) or "no run was measured"
    advice = f"Run: {command}"
    if any("item" in reason for reason in thin):
        advice += (
            f", and for {MIN_ITEMS} items or more, in another folder, a larger measure.limit "
            "(or measure.loss_documents)"
        )
    return (
        f"the evidence is too thin: no configuration has {count(wish.seeds, 'seed')} and "
        f"{MIN_ITEMS} items ({told}). {advice}"
    )


def _short(sentences: list[str]) -> list[str]:
    """The first few, and how many more."""
    left = len(sentences) - SHOWN
    return sentences if left <= 0 else [*sentences[:SHOWN], f"and {left} more"]


def _costs(study: Path) -> dict[str, dict[str, Any]]:
    path = study / "cost.json"
    found = read_json(path) if path.is_file() else {}
    rows = found.get("runs") if isinstance(found, dict) else None
    return {row["id"]: row for row in rows or [] if isinstance(row, dict) and "id" in row}


def _cost(points: Mapping[int, Point], costs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Tokens to the point; time, memory and FLOPs of the whole runs, over the seeds."""
    rows = [costs[p.run["id"]] for p in points.values() if p.run["id"] in costs]
    first = next(iter(points.values()))
    cost: dict[str, Any] = {
        "tokens": first.tokens,
        "budgets_of_the_run": [mark["budget"] for mark in first.run["points"]],
    }
    if rows:
        cost["train_seconds"] = sum(row["train_seconds"] for row in rows) / len(rows)
        cost["flops"] = sum(row["flops"] for row in rows) / len(rows)
        cost["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)
        cost["tokens_per_second"] = sum(row["tokens_per_second"] for row in rows) / len(rows)
    return cost
