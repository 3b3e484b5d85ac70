"""Which learning rates an arm was run at, and which of them is best with each seed. No torch.

The best rate has the lowest validation loss at the largest budget. A recipe may choose
by the leading learning score instead, and either may be held to a bound of forgetting
(`search.objective`, `search.max_forgetting`). All of it is a pure function of what was
measured, so whoever comes to a study folder comes to the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from laura.recipe.search import Family, families_of, grid_seeds, rates_beyond, reachable_rates
from laura.recipe.sections import Recipe
from laura.results.schema import FamilyTable, SearchTable, TrialRow
from laura.results.statistics import mean_of_tasks
from laura.results.task_result import change
from laura.study.evidence import Choice, Evidence, Point

ENDED = ("done", "diverged", "pruned")


@dataclass(frozen=True)
class Outcome:
    """What one trial, an arm at a rate with a seed, came to.

    Attributes:
        value: The objective, turned so that higher is better; minus infinity for a
            run that diverged.
        forgetting: How much was forgotten, in the unit of `search.max_forgetting`;
            infinite for a run that diverged, NaN where nobody asks.
    """

    value: float
    forgetting: float


@dataclass(frozen=True)
class Tried:
    """One arm at one rate with one seed.

    Attributes:
        arm: Name of the arm.
        learning_rate: Peak rate.
        seed: Seed.
        state: `done`, `diverged`, `pruned` (stopped early) or `open` (not finished).
        outcome: At the largest budget; None unless done and measured.
    """

    arm: str
    learning_rate: float
    seed: int
    state: str
    outcome: Outcome | None


LOST = Outcome(-math.inf, math.inf)


def outcome_of(point: Point, evidence: Evidence) -> Outcome | None:
    """Objective and forgetting at a point; None where something was not measured."""
    if evidence.recipe.search.objective_value == "learning":
        task = evidence.learning[0]
        value = _better(task, point, evidence)
    else:
        loss = point.validation
        value = None if loss is None else -loss
    forgetting = _forgotten(point, evidence) if _is_searched(evidence) else math.nan
    bounded = evidence.recipe.search.max_forgetting is not None
    if value is None or (forgetting is None and bounded):
        return None
    return Outcome(value, math.nan if forgetting is None else forgetting)


def _is_searched(evidence: Evidence) -> bool:
    """Whether the study is more than plain lists of rates: its table tells of forgetting too."""
    search = evidence.recipe.search
    return search.sampler != "grid" or bool(search.families) or search.max_forgetting is not None


def _better(task: str, point: Point, evidence: Evidence) -> float | None:
    """Change against the base, turned so that higher is better; None if unmeasured."""
    if task not in point.results or task not in evidence.base:
        return None
    measure = evidence.measures[task]
    moved = change(evidence.base[task], point.results[task], measure.metric).value
    return moved if measure.higher_is_better else -moved


def _forgotten(point: Point, evidence: Evidence) -> float | None:
    """Fall of the mean of the accuracies (Biderman et al. 2024, section 3), or of the first."""
    tasks = evidence.accuracies or evidence.forgetting[:1]
    if any(task not in point.results or task not in evidence.base for task in tasks):
        return None
    if not evidence.accuracies:
        better = _better(tasks[0], point, evidence)
        return None if better is None else -better
    changes = [
        change(evidence.base[t], point.results[t], evidence.measures[t].metric) for t in tasks
    ]
    return -mean_of_tasks(changes).value


def choices(evidence: Evidence) -> dict[str, Choice]:
    """What was chosen for every arm of the recipe."""
    found: dict[str, dict[tuple[float, int], Tried]] = {arm: {} for arm in evidence.recipe.arms}
    for trial in tried(evidence):
        found[trial.arm][trial.learning_rate, trial.seed] = trial
    arms = evidence.recipe.arms
    chosen = {
        arm: _choice(arm, trials, evidence) for arm, trials in found.items() if arms[arm].of is None
    }
    return {
        arm: chosen[arm]
        if arm in chosen
        else _choice_after(chosen[arms[arm].of or ""], found[arm], evidence)
        for arm in arms
    }


def _choice_after(
    source: Choice, trials: Mapping[tuple[float, int], Tried], evidence: Evidence
) -> Choice:
    """What was chosen for an arm made of another's checkpoints: its list is that one's."""
    recipe = evidence.recipe
    best = _best(source.rates, grid_seeds(recipe.seeds, recipe.search), trials, evidence)
    return Choice(source.rates, _for_all_seeds(best, recipe))


def _for_all_seeds(best: dict[int, float], recipe: Recipe) -> dict[int, float]:
    if recipe.search.seeds_value == "first":
        return {seed: rate for rate in best.values() for seed in recipe.seeds}
    return best


def _choice(arm: str, trials: Mapping[tuple[float, int], Tried], evidence: Evidence) -> Choice:
    recipe = evidence.recipe
    seeds = grid_seeds(recipe.seeds, recipe.search)
    rates = _first_list(arm, trials, recipe)
    below, above = rates_beyond(recipe.arms[arm], recipe.search)
    room = recipe.search.extend
    while True:
        best = _best(rates, seeds, trials, evidence)
        further = []
        if rates and room > 0 and below and rates[0] in best.values():
            further.append(below.pop(0))
        if rates and room > len(further) and above and rates[-1] in best.values():
            further.append(above.pop(0))
        # A round is one step at one end or at both, so that who continues goes the same way.
        if not any((rate, seed) in trials for rate in further for seed in seeds):
            break
        rates, room = sorted([*rates, *further]), room - len(further)
    return Choice(tuple(rates), _for_all_seeds(best, recipe), tuple(further))


def _first_list(
    arm: str, trials: Mapping[tuple[float, int], Tried], recipe: Recipe
) -> Sequence[float]:
    """An arm's rates before they grow, rising."""
    given = recipe.arms[arm]
    if given.external is not None:
        last = max(recipe.budget.listed or [0])
        return sorted({point.learning_rate for point in given.external if point.budget == last})
    if recipe.search.sampler != "grid":
        # A search knows no list beforehand: what somebody else left half-way is not part of it.
        return sorted({rate for (rate, _), trial in trials.items() if trial.state in ENDED})
    return sorted(given.learning_rates)


def _best(
    rates: Sequence[float],
    seeds: Sequence[int],
    trials: Mapping[tuple[float, int], Tried],
    evidence: Evidence,
) -> dict[int, float]:
    """The best rate with each seed that every rate has ended with; of equal ones the lowest."""
    best = {}
    for seed in seeds:
        own = [trials.get((rate, seed)) for rate in rates]
        ended = [trial for trial in own if trial is not None and trial.state in ENDED]
        allowed = [
            (-trial.outcome.value, trial.learning_rate)
            for trial in ended
            if trial.outcome is not None and within(trial.outcome, evidence)
        ]
        if allowed and len(ended) == len(rates):
            best[seed] = min(allowed)[1]
    return best


def within(outcome: Outcome, evidence: Evidence) -> bool:
    """Whether it forgot no more than the recipe allows."""
    bound = evidence.recipe.search.max_forgetting
    return bound is None or outcome.forgetting <= bound


def tried(evidence: Evidence) -> list[Tried]:
    """Every arm at every rate asked for, with every seed of the grid it was run with, in order."""
    recipe = evidence.recipe
    last = max(recipe.budget.listed or [0])
    seeds = grid_seeds(recipe.seeds, recipe.search)
    states: dict[tuple[str, float, int], set[str]] = {}
    finished = set()
    for run in evidence.runs:
        if run.seed in seeds and _is_asked_for(run.arm, run.learning_rate, recipe):
            states.setdefault((run.arm, run.learning_rate, run.seed), set()).add(run.state)
            if run.state == "done":
                finished.add(run.run_id)
    outcomes = {
        (point.arm, point.learning_rate, point.seed): outcome_of(point, evidence)
        for point in evidence.points
        if point.budget == last and point.run_id in finished
    }
    searched = recipe.search.sampler != "grid"
    return [
        Tried(*place, _state(found, place in outcomes, searched), outcomes.get(place))
        for place, found in states.items()
    ]


def _is_asked_for(arm: str, rate: float, recipe: Recipe) -> bool:
    """Whether a rate is one that a grid may come to, or within the range of a search."""
    given = recipe.arms[arm]
    if recipe.search.sampler == "grid":
        return rate in reachable_rates(given, recipe.search)
    return min(given.learning_rates) <= rate <= max(given.learning_rates)


def _state(found: set[str], measured: bool, searched: bool) -> str:
    for state in ("diverged", "pruned"):
        if state in found:
            return state
    if measured:
        return "done"
    # Where every budget is a run of its own, a search stops by not beginning the next.
    return "pruned" if searched and found == {"done"} else "open"


def search_table(evidence: Evidence) -> SearchTable | None:
    """What was tried and what not, for `summary.json`; None for plain lists of rates."""
    search = evidence.recipe.search
    if not _is_searched(evidence):
        return None
    trials = _over_seeds(tried(evidence))
    families = families_of(evidence.recipe.arms, search.families)
    return SearchTable(
        sampler=search.sampler,
        objective=search.objective_value,
        pruner=search.pruner,
        max_forgetting=search.max_forgetting,
        trials=None if search.sampler == "grid" else search.trials,
        families=[_family_table(family, trials, evidence) for family in families],
    )


def _over_seeds(trials: Sequence[Tried]) -> list[Tried]:
    """One for each arm and rate: the mean of its outcomes, and the state that tells most."""
    groups: dict[tuple[str, float], list[Tried]] = {}
    for trial in trials:
        groups.setdefault((trial.arm, trial.learning_rate), []).append(trial)
    rows = []
    for group in groups.values():
        states = {trial.state for trial in group}
        state = next(one for one in ("diverged", "pruned", "open", "done") if one in states)
        known = [trial.outcome for trial in group if trial.outcome is not None]
        sums = [sum(o.value for o in known), sum(o.forgetting for o in known)]
        mean = Outcome(*(one / len(known) for one in sums)) if known else None
        rows.append(replace(group[0], state=state, outcome=mean))
    return rows


def _family_table(family: Family, trials: list[Tried], evidence: Evidence) -> FamilyTable:
    grid = evidence.recipe.search.sampler == "grid"
    arms = list(family.arms.values())
    mine = [trial for trial in trials if trial.arm in arms]
    allowed = [t for t in mine if t.outcome is not None and within(t.outcome, evidence)]
    best = max(allowed, key=lambda t: t.outcome.value if t.outcome else 0.0, default=None)
    rates = list(evidence.rates(arms[0])) if grid else [family.low, family.high]
    return FamilyTable(
        name=family.name,
        arms=arms,
        space={**family.parameters, "learning_rate": rates},
        tried=[_trial_row(trial, evidence) for trial in mine],
        best=None if best is None else _trial_row(best, evidence),
        untried=[arm for arm in arms if arm not in {trial.arm for trial in mine}],
    )


def _trial_row(trial: Tried, evidence: Evidence) -> TrialRow:
    found = trial.outcome
    known = found is not None and math.isfinite(found.forgetting)
    return TrialRow(
        arm=trial.arm,
        learning_rate=trial.learning_rate,
        state=trial.state,
        value=found.value if found else None,
        forgetting=found.forgetting if found and known else None,
        allowed=within(found, evidence) if found else None,
    )


def why_none(arm: str, evidence: Evidence) -> str:
    """Why an arm has no best rate with any seed, to stand after its name."""
    search = evidence.recipe.search
    mine = [trial for trial in tried(evidence) if trial.arm == arm]
    done = {trial.learning_rate for trial in mine if trial.outcome is not None}
    if not mine and search.sampler != "grid":
        return "was not drawn by the search"
    if mine and {trial.state for trial in mine} == {"diverged"}:
        return "diverged in every run"
    if not done:
        return "has no finished run at the largest budget"
    if search.max_forgetting is not None and {trial.state for trial in mine} <= {*ENDED}:
        tries = "its one rate" if len(done) == 1 else f"each of {len(done)} rates"
        return f"forgot more than {search.max_forgetting:g} at {tries}"
    return "has no seed that every rate was run with to its end"


def choice_gaps(evidence: Evidence) -> list[str]:
    """Arms without a best rate, and seeds of an arm without one, in words."""
    gaps, recipe = [], evidence.recipe
    trials = tried(evidence)
    for arm in recipe.arms:
        best = evidence.best.get(arm, {})
        if not best:
            gaps.append(f"{arm} {why_none(arm, evidence)}, so no best rate")
            continue
        for seed in grid_seeds(recipe.seeds, recipe.search):
            if seed not in best:
                own = [t for t in trials if (t.arm, t.seed) == (arm, seed) and t.state in ENDED]
                whole = {*evidence.rates(arm)} <= {trial.learning_rate for trial in own}
                why = "diverged or forgot too much at every rate" if whole else "lacks a rate"
                gaps.append(f"{arm} with seed {seed} {why}, so that seed is left out")
    return gaps


def search_caveats(evidence: Evidence) -> list[str]:
    """What a reader must know of how the rates were chosen, in sentences."""
    search, steering = evidence.recipe.search, evidence.steering
    caveats = []
    added = [f"{one.arm} at {one.learning_rate:g}" for one in steering.rates if one.measured]
    added += [f"seed {one.seed}" for one in steering.seeds if one.measured]
    if added:
        caveats.append(
            f"Added by hand after scores had been seen: {', '.join(added)}; what was tried was not "
            "fixed beforehand, so errors are a little larger than told."
        )
    arms = evidence.recipe.arms
    if skipped := [
        f"{one.arm} at {one.learning_rate:g}, seed {one.seed}"
        for one in steering.skipped
        if one.arm in arms
    ]:
        caveats.append(f"Skipped by hand: {'; '.join(skipped)}.")
    for arm in evidence.best if search.sampler != "grid" else ():
        rates = evidence.recipe.arms[arm].learning_rates
        count = len(evidence.rates(arm))
        if min(rates) < max(rates):
            caveats.append(
                f"{arm} was tried at {count} learning rate{'s' * (count != 1)} drawn between "
                f"{min(rates):g} and {max(rates):g}; others in between may do better."
            )
    if search.objective_value == "learning":
        title = evidence.measures[evidence.learning[0]].title
        caveats.append(
            f"The rates were chosen by {title} itself, on the items it is told on: the scores of "
            "the chosen ones flatter."
        )
    return caveats
