"""Which configuration to take, judged from what was run, with the evidence for it. No torch.

A configuration is an arm at a learning rate and a budget; nothing is interpolated. Learning
is the gain on the leading learning task, forgetting the loss of the mean of the accuracies
(or of the first forgetting task), both against the base and paired by item. It speaks of this
configuration, never of the method.

**Chosen on some seeds, confirmed on others.** Every measured configuration whose means keep
what is asked is named, also those with one seed; the best of them is *suggested*, with the
command that would confirm it. It is *recommended* where the whole 95 % interval from fresh
seeds, which had no part in the choice, keeps the bounds (Bonferroni over the arms and rates
that were confirmed; the budget is chosen on the first seeds).

**Without fresh seeds choosing is allowed for.** The best of m configurations, chosen on the
seeds that also tell how good it is, looks better than it is. So intervals are simultaneous:
of each of the m the two of learning and forgetting at the level 1 - 0.05 / 2m.

**Who has learnt nothing is not named**: without another bound, learning must be above 0, or
the base itself would be the best answer to a bound on forgetting.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from laura.results.errors import EvidenceError, UsageError
from laura.results.schema import COST_FILE, Constraint, Costs, RunCost, read_file
from laura.results.statistics import ALPHA, LEVEL, MIN_SEEDS, Contrast, TooThin
from laura.results.units import memory_text, rate_text
from laura.study.claims.answer import amount, points
from laura.study.claims.judgement import read_setting
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Setting
from laura.study.evidence import Point

State = Literal["recommended", "suggested", "not met"]


@dataclass(frozen=True, eq=False)
class Configuration:
    """An arm at a rate and a budget that was run.

    Attributes:
        arm: The arm.
        learning_rate: Peak rate.
        budget: Tokens or epochs.
        points: Its measured points by seed: the fresh ones where it was confirmed.
        learnt: Mean gain over the base.
        forgot: Mean loss against the base.
        learning: The gain with its errors; None with fewer than three seeds.
        forgetting: The loss likewise.
        level: Of both intervals.
        confirmed: Whether these are fresh seeds.
        cost: What a run took, as measured; empty where that is not known.
    """

    arm: Kind
    learning_rate: float
    budget: float
    points: Mapping[int, Point]
    learnt: float
    forgot: float
    learning: Contrast | None
    forgetting: Contrast | None
    level: float
    confirmed: bool
    cost: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """What was decided, and by what.

    Attributes:
        state: `recommended`, `suggested`, or `not met` where nothing measured keeps the bounds.
        chosen: The configuration; None when not met.
        others: The others that could keep the bounds, best first, and then the nearest; each
            with why it was not chosen.
        candidates: How many were measured.
        confirm: The command that would confirm the chosen one; "" where it is.
        sure: The first that surely keeps the bounds, whether anybody would take it or not.
        constraint: What was asked.
        setting: The study.
    """

    state: State
    chosen: Configuration | None
    others: list[tuple[Configuration, str]]
    candidates: int
    confirm: str
    sure: Configuration | None
    constraint: Constraint
    setting: Setting


def recommend(study: Path, constraint: Constraint) -> Decision:
    """Choose among the configurations of a study.

    With a bound on forgetting, the one that learns most within it; with a bound on
    learning alone, the one that forgets least.

    Raises:
        EvidenceError: nothing was measured, or not what is asked; the message says what to run.
        UsageError: no bound is given, one is no number, or there is no such arm.
        StoreError: the folder holds no study.
    """
    _check(constraint)
    setting = read_setting(study)
    known = ", ".join(setting.evidence.recipe.arms)
    if constraint.arm is not None and constraint.arm not in setting.evidence.recipe.arms:
        raise UsageError(f"the study has no arm {constraint.arm!r}; it has: {known}")
    return decide(setting, constraint, costs_of(study), study)


def decide(
    setting: Setting, constraint: Constraint, costs: Mapping[str, RunCost], study: Path
) -> Decision:
    """`recommend` for a study that is read already."""
    explored = _explored(setting, constraint, costs)
    if not explored:
        raise EvidenceError(
            "no configuration has both learning and forgetting measured; give `laura compare "
            f"{shlex.quote(str(study / 'recipe.yaml'))} --out {shlex.quote(str(study))}` again"
        )
    if constraint.memory_bytes is not None:
        explored = _within_memory(explored, constraint.memory_bytes)
    ordered = sorted(explored, key=lambda one: _preference(one, constraint))
    could = [one for one in ordered if not _breaks_by_mean(one, constraint)]
    confirmed = _confirmed(setting, could or ordered, costs)
    state, chosen = _choose(could, confirmed, constraint)
    rest = [one for one in could if not _same(one, chosen)]
    nearest = [one for one in ordered if one not in could]
    nearest.sort(key=lambda one: _excess(one, constraint))
    fresh = {_place(one): one for one in confirmed}
    others = [
        (one, _why_not(fresh.get(_place(one), one), constraint, True, setting)) for one in rest
    ]
    others += [(one, _why_not(one, constraint, False, setting)) for one in nearest[:3]]
    to_confirm = chosen if state == "suggested" else None
    confirm = _command(to_confirm, study) if to_confirm else ""
    told = [fresh.get(_place(one), one) for one in could]
    sure = next((one for one in told if not _breaks(one, constraint)), None)
    return Decision(state, chosen, others, len(explored), confirm, sure, constraint, setting)


def answer_of(decision: Decision) -> str:
    """The decision in one sentence of at most 25 words."""
    chosen, unit = decision.chosen, decision.setting.unit
    if chosen is None:
        nearest, _ = decision.others[0]
        return (
            f"Lower rate or budget, or add replay: nothing measured keeps the bound; nearest: "
            f"{describe(nearest)}, forgetting {_size(nearest.forgot, unit(FORGETTING))}."
        )
    learnt = _size(chosen.learnt, unit(LEARNING))
    forgot = _size(chosen.forgot, unit(FORGETTING))
    seeds = f"{len(chosen.points)} {'fresh ' if chosen.confirmed else ''}seed"
    seeds += "" if len(chosen.points) == 1 else "s"
    verb = "Take" if decision.state == "recommended" else "Try and confirm"
    return f"{verb} {describe(chosen)}: it learnt {learnt} and forgot {forgot} with {seeds}."


def not_met_text(decision: Decision) -> str:
    """Why nothing keeps the bounds, and what comes nearest, in plain words."""
    nearest, why = decision.others[0]
    return (
        f"none of the {decision.candidates} measured configurations keeps what is asked. Nearest: "
        f"{describe(nearest)}: {why}. Try lower rates, a smaller budget, a lower rank or replay"
    )


def describe(one: Configuration) -> str:
    """A configuration in a few words."""
    return f"{one.arm.name} at {rate_text(one.learning_rate)}, budget {one.budget:,g}"


def costs_of(study: Path) -> dict[str, RunCost]:
    """Run ID to what it took; empty where that was not kept."""
    path = study / COST_FILE
    return {run.id: run for run in read_file(Costs, path).runs} if path.is_file() else {}


def _size(value: float, unit: str) -> str:
    """What was learnt or forgot: `6 points`, `-0.4 points` where it went the other way."""
    return f"{'-' if value < 0 and points(value) != '0' else ''}{amount(value, unit)}"


def _check(constraint: Constraint) -> None:
    if constraint.max_forgetting is None and constraint.min_learning is None:
        raise UsageError(
            "say what is wanted: --max-forgetting X (at most so much is forgotten), "
            "--min-learning Y (at least so much is learnt), or both"
        )


def _explored(
    setting: Setting, constraint: Constraint, costs: Mapping[str, RunCost]
) -> list[Configuration]:
    """Every measured configuration by the recipe's seeds, at the simultaneous level."""
    found = []
    for arm in setting.arms:
        if constraint.arm in (None, arm.name):
            for (learning_rate, budget), by_seed in setting.configurations(arm).items():
                one = _configuration(setting, arm, learning_rate, budget, by_seed, costs)
                if one is not None:
                    found.append(one)
    whole = sum(one.forgetting is not None for one in found)
    level = 1 - ALPHA / (2 * max(1, whole))  # both sides of each are told
    return [replace(one, level=level) for one in found]


def _configuration(
    setting: Setting,
    arm: Kind,
    learning_rate: float,
    budget: float,
    by_seed: Mapping[int, Point],
    costs: Mapping[str, RunCost],
) -> Configuration | None:
    """What is known of a configuration; None where learning or forgetting was not measured."""
    results = {s: p.results for s, p in by_seed.items()}
    try:
        tuned = {m: setting.scores(results, m, arm.name) for m in (LEARNING, FORGETTING)}
        base = {m: setting.base_scores(m, tuned[m].seeds) for m in tuned}
    except TooThin:
        return None
    seeds = [s for s in tuned[LEARNING].seeds if s in tuned[FORGETTING].seeds]
    if not seeds or any(tuned[m].items != base[m].items for m in tuned):
        return None
    means, contrasts = list[float](), list[Contrast]()
    for measure, sign in ((LEARNING, 1.0), (FORGETTING, -1.0)):
        rows, start = tuned[measure].rows(seeds), base[measure].rows(seeds)
        moved = [float(rows[task].mean() - start[task].mean()) for task in rows]
        means.append(sign * sum(moved) / len(moved))
        try:
            contrasts.append(setting.contrast([(sign, tuned[measure]), (-sign, base[measure])]))
        except TooThin:
            continue
    points_of = {seed: by_seed[seed] for seed in seeds}
    both = len(contrasts) == 2
    return Configuration(
        arm, learning_rate, budget, points_of, means[0], means[1],
        contrasts[0] if both else None, contrasts[1] if both else None,
        LEVEL, False, _cost(points_of, costs),
    )  # fmt: skip


def _confirmed(
    setting: Setting, ordered: Sequence[Configuration], costs: Mapping[str, RunCost]
) -> list[Configuration]:
    """The best budget, by the first seeds, of each arm and rate that has fresh seeds."""
    fresh: dict[tuple[str, float, float], dict[int, Point]] = {}
    for point in setting.evidence.confirming:
        place = (point.arm, point.learning_rate, point.budget)
        fresh.setdefault(place, {})[point.seed] = point
    found: dict[tuple[str, float], Configuration] = {}
    for one in ordered:
        by_seed = fresh.get(_place(one), {})
        if (one.arm.name, one.learning_rate) in found or len(by_seed) < MIN_SEEDS:
            continue
        told = _configuration(setting, one.arm, one.learning_rate, one.budget, by_seed, costs)
        if told is not None and told.forgetting is not None:
            found[one.arm.name, one.learning_rate] = replace(told, confirmed=True)
    tried = len({place[:2] for place, by_seed in fresh.items() if len(by_seed) >= MIN_SEEDS})
    return [replace(one, level=1 - ALPHA / max(1, tried)) for one in found.values()]


def _choose(
    could: Sequence[Configuration], confirmed: Sequence[Configuration], constraint: Constraint
) -> tuple[State, Configuration | None]:
    """A confirmed one that keeps the bounds, or else the best by its means, surely or not.

    One that surely keeps them and learns next to nothing is not what anybody would take.
    """
    fresh = {_place(one): one for one in confirmed}
    for one in could:
        told = fresh.get(_place(one))
        if told is not None and not _breaks(told, constraint):
            return "recommended", told
    # What fresh seeds have refuted is no suggestion any more.
    left = [one for one in could if _place(one) not in fresh]
    left += [one for one in confirmed if not _breaks_by_mean(one, constraint)]
    left.sort(key=lambda one: _preference(one, constraint))
    if not left:
        return "not met", None
    return ("suggested" if _breaks(left[0], constraint) else "recommended"), left[0]


def _place(one: Configuration) -> tuple[str, float, float]:
    return one.arm.name, one.learning_rate, one.budget


def _same(one: Configuration, other: Configuration | None) -> bool:
    return other is not None and _place(one) == _place(other)


def _preference(one: Configuration, constraint: Constraint) -> tuple[float, float]:
    """What comes first: most learnt within a bound of forgetting, else least forgotten."""
    if constraint.max_forgetting is None:
        return one.forgot, -one.learnt
    return -one.learnt, one.forgot


def _breaks_by_mean(one: Configuration, constraint: Constraint) -> bool:
    most, least = constraint.max_forgetting, constraint.min_learning
    over = most is not None and one.forgot > most
    return over or (one.learnt <= 0 if least is None else one.learnt < least)


def _breaks(one: Configuration, constraint: Constraint) -> bool:
    """Whether an interval does not lie wholly within the bounds."""
    if one.forgetting is None or one.learning is None:
        return True
    most, least = constraint.max_forgetting, constraint.min_learning
    over = most is not None and one.forgetting.interval(one.level)[1] > most
    low = one.learning.interval(one.level)[0]
    return over or (low <= 0 if least is None else low < least)


def _excess(one: Configuration, constraint: Constraint) -> float:
    """How far the means are from keeping the bounds; 0 when they do."""
    over = 0.0
    if constraint.max_forgetting is not None:
        over += max(0.0, one.forgot - constraint.max_forgetting)
    return over + max(0.0, (constraint.min_learning or 0.0) - one.learnt)


def _why_not(one: Configuration, constraint: Constraint, could: bool, setting: Setting) -> str:
    if one.confirmed and _breaks(one, constraint):
        return "its fresh seeds do not surely keep the bound"
    if could:
        return "it forgets more" if constraint.max_forgetting is None else "it learns less"
    if constraint.min_learning is None and one.learnt <= 0:
        return "it learnt nothing"
    broken = []
    if constraint.max_forgetting is not None and one.forgot > constraint.max_forgetting:
        broken.append(f"it forgot {_size(one.forgot, setting.unit(FORGETTING))}")
    if constraint.min_learning is not None and one.learnt < constraint.min_learning:
        broken.append(f"it learnt {_size(one.learnt, setting.unit(LEARNING))}")
    return " and ".join(broken)


def _command(one: Configuration, study: Path) -> str:
    """The command that trains a configuration with fresh seeds; with more where it had some."""
    more = f" --confirm-seeds {2 * len(one.points)}" if one.confirmed else ""
    return (
        f"laura compare {shlex.quote(str(study / 'recipe.yaml'))} "
        f"--out {shlex.quote(str(study))} --confirm {one.arm.name}@{one.learning_rate:g}"
        f"{more}"
    )


def _within_memory(found: list[Configuration], limit: int) -> list[Configuration]:
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
            f"nothing that was run stayed within {memory_text(limit)}; the least was "
            f"{memory_text(least.cost['peak_memory_bytes'])} with {describe(least)}. Lower "
            "train.rows_per_pass or train.row_tokens, or try LoRA of a lower rank"
        )
    return fits


def _cost(points_of: Mapping[int, Point], costs: Mapping[str, RunCost]) -> dict[str, Any]:
    """Tokens to the point; time, memory and FLOPs of the whole runs, over the seeds."""
    rows = [costs[p.run["id"]] for p in points_of.values() if p.run["id"] in costs]
    first = next(iter(points_of.values()))
    cost: dict[str, Any] = {
        "tokens": first.tokens,
        "budgets_of_the_run": [mark["budget"] for mark in first.run["points"]],
    }
    for key, value in (("train_seconds", _mean), ("flops", _mean), ("tokens_per_second", _mean),
                       ("peak_memory_bytes", max)):  # fmt: skip
        known = [found for row in rows if (found := getattr(row, key)) is not None]
        if known:
            cost[key] = value(known)
    return cost


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
