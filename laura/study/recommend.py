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

What was decided is handed over as JSON, as a recipe, and as a folder of weights with its
record, which are copied as files after their checksums were checked.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from laura.models.model_card import CARD
from laura.recipe.reading import recipe_yaml
from laura.results.errors import AdapterError, EvidenceError, UsageError
from laura.results.schema import (
    COST_FILE,
    RECORD_FILE,
    BaseIdentity,
    Candidate,
    Constraint,
    Costs,
    Estimated,
    EstimatedTasks,
    Recommendation,
    Record,
    RecordedClaim,
    ReplayLaw,
    RunCost,
    TaskScores,
    read_file,
    write_record,
)
from laura.results.statistics import ALPHA, LEVEL, MIN_ITEMS, MIN_SEEDS, Contrast, TooThin, count
from laura.results.store import (
    MANIFEST,
    StudyStore,
    check_folder,
    disk_faults,
    file_hash,
    read_json,
    write_folder,
    write_text,
)
from laura.results.task_result import change
from laura.results.units import budget_text, memory_text, rate_text
from laura.study.choosing import why_none
from laura.study.claims.answer import amount, points
from laura.study.claims.judgement import judge, read_setting
from laura.study.claims.replay_law import replay_laws
from laura.study.claims.settings import DROPOUTS, FORGETTING, LEARNING, Kind, Setting
from laura.study.evidence import Evidence, Point, leading, score_of
from laura.study.model_cards import record_card

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

    @property
    def place(self) -> tuple[str, float, float]:
        """What tells it apart: arm, rate and budget."""
        return self.arm.name, self.learning_rate, self.budget


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
    if constraint.max_forgetting is None and constraint.min_learning is None:
        raise UsageError(
            "say what is wanted: --max-forgetting X (at most so much is forgotten), "
            "--min-learning Y (at least so much is learnt), or both"
        )
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
    rest = [one for one in could if chosen is None or one.place != chosen.place]
    nearest = [one for one in ordered if one not in could]
    nearest.sort(key=lambda one: _excess(one, constraint))
    fresh = {one.place: one for one in confirmed}
    others = [(one, _why_not(fresh.get(one.place, one), constraint, True, setting)) for one in rest]
    others += [(one, _why_not(one, constraint, False, setting)) for one in nearest[:3]]
    to_confirm = chosen if state == "suggested" else None
    confirm = _command(to_confirm, study) if to_confirm else ""
    told = [fresh.get(one.place, one) for one in could]
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
        + "".join(f"; {replay_text(law)}" for law in laws_of(decision))
    )


def laws_of(decision: Decision) -> list[ReplayLaw]:
    """What shares of replay would keep the bound on forgetting, where several were tried."""
    most = decision.constraint.max_forgetting
    return [] if most is None else list(replay_laws(decision.setting, most))


def replay_text(law: ReplayLaw) -> str:
    """A law of replay in words: `about 1.3 % of replay (0.4 to 4 %) keeps the bound with full`."""

    def told(share: float | None) -> str:
        return f"{100 * share:.2g}" if share is not None else f"over {100 * max(law.shares):.2g}"

    low, high = (told(end) for end in law.interval)
    return (
        f"about {told(law.share)} % of replay ({low} to {high} %) keeps the bound with {law.arm} "
        f"at budget {budget_text(law.budget)}, by a law fitted over {len(law.shares)} shares "
        f"(R2 {law.r_squared:.2f})"
    )


def describe(one: Configuration) -> str:
    """A configuration in a few words."""
    return f"{one.arm.name} at {rate_text(one.learning_rate)}, budget {budget_text(one.budget)}"


def costs_of(study: Path) -> dict[str, RunCost]:
    """Run ID to what it took; empty where that was not kept."""
    path = study / COST_FILE
    return {run.id: run for run in read_file(Costs, path).runs} if path.is_file() else {}


def _size(value: float, unit: str) -> str:
    """What was learnt or forgot: `6 points`, `-0.4 points` where it went the other way."""
    return f"{'-' if value < 0 and points(value) != '0' else ''}{amount(value, unit)}"


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
        by_seed = fresh.get(one.place, {})
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
    fresh = {one.place: one for one in confirmed}
    for one in could:
        told = fresh.get(one.place)
        if told is not None and not _breaks(told, constraint):
            return "recommended", told
    # What fresh seeds have refuted is no suggestion any more.
    left = [one for one in could if one.place not in fresh]
    left += [one for one in confirmed if not _breaks_by_mean(one, constraint)]
    left.sort(key=lambda one: _preference(one, constraint))
    if not left:
        return "not met", None
    return ("suggested" if _breaks(left[0], constraint) else "recommended"), left[0]


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
    rows = [costs[p.run_id] for p in points_of.values() if p.run_id in costs]
    first = next(iter(points_of.values()))
    cost: dict[str, Any] = {
        "tokens": first.tokens,
        "budgets_of_the_run": [mark["budget"] for mark in first.record["points"]],
    }
    for key, value in (("train_seconds", fmean), ("flops", fmean), ("tokens_per_second", fmean),
                       ("peak_memory_bytes", max)):  # fmt: skip
        known = [found for row in rows if (found := getattr(row, key)) is not None]
        if known:
            cost[key] = value(known)
    return cost


# ----- what was not tried -----


def untried(setting: Setting, chosen: Kind | None, budget: float | None) -> list[str]:
    """What was not tried, in sentences.

    Args:
        setting: The study.
        chosen: The arm that is recommended, if one is.
        budget: Its budget.
    """
    evidence, arms, told = setting.evidence, setting.arms, list[str]()
    recipe = evidence.recipe
    for name in recipe.arms:
        rates, edge = evidence.rates(name), evidence.edge(name)
        if name not in evidence.best:
            told.append(f"{name} {why_none(name, evidence)}.")
        elif len(rates) == 1:
            told.append(f"{name} was tried at the one learning rate {rates[0]:g}.")
        elif edge:
            ends = {"low": f"below {rates[0]:g}", "high": f"above {rates[-1]:g}"}
            beyond = ends.get(edge, f"below {rates[0]:g} or above {rates[-1]:g}")
            told.append(f"{name} is best at the end of its rates: none {beyond} was tried.")
    if budget is not None and budget == max(setting.budgets):
        told.append(f"No budget above {budget_text(budget)} was tried.")
    methods = {arm.method for arm in arms}
    told += [f"No arm of {name} was tried." for name in ("full", "lora") if name not in methods]
    loras = [arm for arm in arms if arm.method == "lora"]
    if loras:
        ranks = sorted({arm.rank for arm in loras})
        told.append(f"LoRA was tried at rank {', '.join(map(str, ranks))} only.")
        targets = sorted({arm.targets or "other" for arm in loras})
        told.append(f"LoRA was tried on {', '.join(targets)} modules only.")
    if not any(arm.number("replay") for arm in arms):
        told.append("Replay of source data was not tried.")
    if not any(arm.number(key) for arm in arms for key in ("weight_decay", *DROPOUTS)):
        told.append("Neither weight decay nor dropout of full finetuning was tried.")
    if chosen is not None and recipe.budget.points == "hot":
        told.append("The budget is a point of a longer run whose rate had not come down yet.")
    told.append(f"One optimiser was used ({recipe.train.optimiser}), and one batch size.")
    return told


NAME_ENDING, LONGEST_NAME = "-recommended", 64


# ----- handing over -----


def recommendation_of(
    decision: Decision, recipe: Path | None, adapter: Path | None
) -> Recommendation:
    """A decision as `recommendation.json` holds it, with where recipe and weights went."""
    setting, chosen = decision.setting, decision.chosen
    gaps = untried(setting, chosen.arm if chosen else None, chosen.budget if chosen else None)
    return Recommendation(
        answer=answer_of(decision),
        study=setting.name,
        asked=decision.constraint,
        state=decision.state,
        measures={
            name: {"tasks": setting.tasks(name), "unit": setting.unit(name)}
            for name in (LEARNING, FORGETTING)
        },
        candidates=decision.candidates,
        chosen=_candidate(chosen, setting, "") if chosen else None,
        alternatives=[_candidate(one, setting, why) for one, why in decision.others],
        confirm=decision.confirm,
        replay=laws_of(decision),
        not_tried=gaps,
        recipe=None if recipe is None else str(recipe),
        adapter=None if adapter is None else str(adapter),
    )


def write_recipe(decision: Decision, path: Path) -> None:
    """Write the recipe of the recommended configuration, ready for `train` and `compare`.

    It is the study's with one arm, one rate and one budget, under a name of its own, so that
    it does not run into the study's folder. Points of a `hot` run keep the whole list: the
    schedule belongs to the longest.

    Raises:
        StoreError: the file cannot be written.
    """
    recipe, chosen = decision.setting.evidence.recipe, _chosen(decision)
    arm = recipe.arms[chosen.arm.name]
    arm = arm.model_copy(update={"learning_rates": [chosen.learning_rate]})
    budget = recipe.budget
    if budget.points == "separate":
        unit = "tokens" if budget.tokens else "epochs"
        point = int(chosen.budget) if budget.tokens else chosen.budget
        budget = budget.model_copy(update={unit: [point]})
    name = recipe.name[: LONGEST_NAME - len(NAME_ENDING)] + NAME_ENDING
    ready = recipe.model_copy(
        update={"name": name, "arms": {chosen.arm.name: arm}, "budget": budget}
    )
    write_text(path, recipe_yaml(ready))


def write_weights(decision: Decision, study: Path, folder: Path) -> Record:
    """Copy the recommended checkpoint, with its `laura.json` and a model card of it.

    It is the first seed of the recipe.

    The first and not the best: to pick the best seed by its scores would make the scores
    in the record too good.

    Raises:
        EvidenceError: the checkpoint is not there any more.
        UsageError: the folder holds something else.
        CheckpointError: the checkpoint does not match its checksums.
        StoreError: the folder cannot be written.
    """
    chosen = _chosen(decision)
    point = next(iter(chosen.points.values()))
    source = StudyStore(study).run(point.run_id).checkpoint(point.step)
    if not source.is_dir():
        raise EvidenceError(
            f"the checkpoint {source} is not there any more; train it again with the recipe "
            "that --out writes"
        )
    with disk_faults(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / RECORD_FILE).is_file():
        raise UsageError(f"{folder} holds something else; name a new folder for --adapter")
    facts = check_folder(source)
    own = (MANIFEST, CARD)  # what is written anew or left
    files = sorted(p for p in source.rglob("*") if p.is_file() and p.name not in own)
    record = _record(
        decision, study, point, {str(p.relative_to(source)): file_hash(p) for p in files}
    )
    config = source / "adapter_config.json"
    named = read_json(config)["base_model_name_or_path"] if config.is_file() else record.base.model
    card = record_card(record, named)

    def fill(place: Path) -> None:
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        write_record(place, record)
        write_text(place / CARD, card)

    write_folder(folder, fill, facts)
    return record


def signature_fault(sure: Configuration, adapter: Path, public_key: Path) -> str | None:
    """Why a folder is not a signed adapter of a configuration; None where it is.

    Raises:
        UsageError: the key cannot be used.
        StoreError: a file cannot be read.
    """
    from laura.models.adapter_files import signed_record
    from laura.models.signatures import PublicKey

    key = PublicKey(public_key)
    try:
        record = signed_record(adapter, key)
    except AdapterError as error:
        return str(error)
    if (record.run, record.step) in {(one.run_id, one.step) for one in sure.points.values()}:
        return None
    return (
        f"{adapter} is run {record.run} at step {record.step}, which is none of {describe(sure)}; "
        "write it anew with `laura recommend STUDY --adapter DIR` and sign it"
    )


def _chosen(decision: Decision) -> Configuration:
    if decision.chosen is None:
        raise ValueError("nothing was recommended, so there is nothing to hand over")
    return decision.chosen


def _candidate(one: Configuration, setting: Setting, why: str) -> Candidate:
    sides = {
        name: None if found is None else Estimated.of(found, setting.unit(name), one.level)
        for name, found in ((LEARNING, one.learning), (FORGETTING, one.forgetting))
    }
    return Candidate(
        arm=one.arm.name,
        method=one.arm.method,
        settings=dict(one.arm.settings),
        learning_rate=one.learning_rate,
        budget=one.budget,
        seeds=list(one.points),
        runs=[point.run_id for point in one.points.values()],
        confirmed=one.confirmed,
        learning=sides[LEARNING],
        forgetting=sides[FORGETTING],
        learnt=one.learnt,
        forgot=one.forgot,
        cost=one.cost,
        why_not=why,
    )


def _record(decision: Decision, study: Path, point: Point, weights: dict[str, str]) -> Record:
    setting, chosen = decision.setting, _chosen(decision)
    evidence = setting.evidence
    base = evidence.facts["base"]
    judged = judge([setting]).claims
    return Record(
        study=setting.name,
        base=BaseIdentity(**base),
        recipe=evidence.recipe.model_dump(mode="json"),
        arm=chosen.arm.name,
        method=chosen.arm.method,
        learning_rate=chosen.learning_rate,
        seed=point.seed,
        budget=float(chosen.budget),
        budget_unit="tokens" if evidence.recipe.budget.tokens else "epochs",
        tokens=point.tokens,
        step=point.step,
        run=str(point.run_id),
        scores=_scores(evidence, point),
        confirmed=chosen.confirmed,
        learning=_estimated(setting, LEARNING, chosen),
        forgetting=_estimated(setting, FORGETTING, chosen),
        claims=[
            RecordedClaim(id=c.id, statement=c.statement, verdict=c.verdict, reason=c.reason)
            for c in judged
        ],
        versions=_versions(study),
        weights=weights,
    )


def _estimated(setting: Setting, measure: str, one: Configuration) -> EstimatedTasks:
    found = one.learning if measure == LEARNING else one.forgetting
    if found is None:
        raise EvidenceError(
            f"{describe(one)} has {count(len(one.points), 'seed')}: too few for an interval, so "
            f"its weights get no record; it takes {MIN_SEEDS} seeds and {MIN_ITEMS} items of each "
            "task. Confirm it first, as `laura recommend` says, or measure more items"
        )
    told = Estimated.of(found, setting.unit(measure), one.level)
    return EstimatedTasks(tasks=setting.tasks(measure), **told.model_dump())


def _scores(evidence: Evidence, point: Point) -> dict[str, TaskScores]:
    found = {}
    for name, measure in evidence.measures.items():
        tuned, base = point.results.get(name), evidence.base.get(name)
        if tuned is None:
            continue
        moved = change(base, tuned, leading(base)) if base else None
        found[name] = TaskScores(
            title=measure.title,
            unit=measure.unit,
            higher_is_better=measure.higher_is_better,
            base=score_of(base) if base else None,
            tuned=score_of(tuned),
            change=moved,
        )
    return found


def _versions(study: Path) -> dict[str, str]:
    """What the weights were trained with, as the study recorded it."""
    path = study / "environment.json"
    known = read_json(path) if path.is_file() else {}
    own = {key: known.get(key) for key in ("laura", "commit", "python")}
    return {k: str(v) for k, v in {**own, **known.get("packages", {})}.items() if v is not None}
