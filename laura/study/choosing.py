"""What the best learning rate of an arm is, and what was tried to find it. No torch.

With a grid and without a bound, the best rate has the lowest validation loss at the
largest budget. A search may choose by the leading learning score instead, and either
may be held to a bound of forgetting (`search.objective`, `search.max_forgetting`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laura.recipe_search import Family, families_of
from laura.results.schema import FamilyTable, SearchTable, TrialRow
from laura.results.statistics import mean_of_tasks
from laura.results.task_result import change

if TYPE_CHECKING:
    from laura.study.summary import Evidence, Point


@dataclass(frozen=True)
class Outcome:
    """What one trial, an arm at a rate with the first seed, came to.

    Attributes:
        value: The objective, turned so that higher is better; minus infinity for a
            run that diverged.
        forgetting: How much was forgotten, in the unit of `search.max_forgetting`;
            infinite for a run that diverged.
    """

    value: float
    forgetting: float


@dataclass(frozen=True)
class Tried:
    """One arm at one rate with the first seed.

    Attributes:
        arm: Name of the arm.
        learning_rate: Peak rate.
        state: `done`, `diverged`, `pruned` (stopped early) or `open` (not finished).
        outcome: At the largest budget; None unless done and measured.
    """

    arm: str
    learning_rate: float
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
    forgetting = _forgotten(point, evidence)
    bounded = evidence.recipe.search.max_forgetting is not None
    if value is None or (forgetting is None and bounded):
        return None
    return Outcome(value, math.nan if forgetting is None else forgetting)


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


def best_rates(evidence: Evidence) -> dict[str, float]:
    """Each arm's best rate among what was tried; an arm is missing where none is allowed."""
    found: dict[str, list[tuple[float, float]]] = {}
    for trial in tried(evidence):
        if trial.outcome is not None and within(trial.outcome, evidence):
            found.setdefault(trial.arm, []).append((-trial.outcome.value, trial.learning_rate))
    return {arm: min(trials)[1] for arm, trials in found.items()}


def within(outcome: Outcome, evidence: Evidence) -> bool:
    """Whether it forgot no more than the recipe allows."""
    bound = evidence.recipe.search.max_forgetting
    return bound is None or outcome.forgetting <= bound


def tried(evidence: Evidence) -> list[Tried]:
    """Every arm and rate of the recipe run with the first seed, by arm and rate."""
    recipe = evidence.recipe
    last = max(recipe.budget.tokens or recipe.budget.epochs or [0])
    states: dict[tuple[str, float], set[str]] = {}
    finished = set()
    for known, run in evidence.runs:
        place = (str(known["arm"]), float(known["learning_rate"]))
        if int(known["seed"]) == recipe.seeds[0] and _is_asked_for(place, evidence):
            states.setdefault(place, set()).add(run.state)
            if run.state == "done":
                finished.add(known["id"])
    outcomes = {
        (point.arm, point.learning_rate): outcome_of(point, evidence)
        for point in evidence.points
        if point.seed == recipe.seeds[0] and point.budget == last and point.run["id"] in finished
    }
    return [
        Tried(*place, _state(found, place in outcomes), outcomes.get(place))
        for place, found in states.items()
    ]


def _is_asked_for(place: tuple[str, float], evidence: Evidence) -> bool:
    """Whether a rate is one of a grid, or within the range of a search."""
    arm, rate = place
    rates = evidence.recipe.arms[arm].learning_rates
    if evidence.recipe.search.sampler == "grid":
        return rate in rates
    return min(rates) <= rate <= max(rates)


def _state(found: set[str], measured: bool) -> str:
    for state in ("diverged", "pruned"):
        if state in found:
            return state
    if measured:
        return "done"
    # Where every budget is a run of its own, a search stops by not beginning the next.
    return "pruned" if found == {"done"} else "open"


def rates_of(arm: str, evidence: Evidence) -> list[float]:
    """The rates an arm was or is to be run at, rising: the recipe's, or those a search drew."""
    if evidence.recipe.search.sampler == "grid":
        return sorted(evidence.recipe.arms[arm].learning_rates)
    return sorted(trial.learning_rate for trial in tried(evidence) if trial.arm == arm)


def search_table(evidence: Evidence) -> SearchTable | None:
    """What was tried and what not, for `summary.json`; None for plain lists of rates."""
    search = evidence.recipe.search
    if search.sampler == "grid" and not search.families and search.max_forgetting is None:
        return None
    trials = tried(evidence)
    families = families_of(evidence.recipe.arms, search.families)
    return SearchTable(
        sampler=search.sampler,
        objective=search.objective_value,
        pruner=search.pruner,
        max_forgetting=search.max_forgetting,
        trials=None if search.sampler == "grid" else search.trials,
        families=[_family_table(family, trials, evidence) for family in families],
    )


def _family_table(family: Family, trials: list[Tried], evidence: Evidence) -> FamilyTable:
    grid = evidence.recipe.search.sampler == "grid"
    arms = list(family.arms.values())
    mine = [trial for trial in trials if trial.arm in arms]
    allowed = [t for t in mine if t.outcome is not None and within(t.outcome, evidence)]
    best = max(allowed, key=lambda t: t.outcome.value if t.outcome else 0.0, default=None)
    rates = rates_of(arms[0], evidence) if grid else [family.low, family.high]
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
    """Why an arm has no best rate, to stand after its name."""
    search = evidence.recipe.search
    mine = [trial for trial in tried(evidence) if trial.arm == arm]
    done = [trial for trial in mine if trial.outcome is not None]
    if done and search.max_forgetting is not None:
        tries = "its one rate" if len(done) == 1 else f"each of {len(done)} rates"
        return f"forgot more than {search.max_forgetting:g} at {tries}"
    if search.sampler != "grid" and not mine:
        return "was not drawn by the search"
    return "has no finished run"


def search_caveats(evidence: Evidence) -> list[str]:
    """What a reader must know of how the rates were chosen, in sentences."""
    search = evidence.recipe.search
    caveats = []
    for arm in evidence.best if search.sampler != "grid" else ():
        rates = evidence.recipe.arms[arm].learning_rates
        count = len(rates_of(arm, evidence))
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


def edge_of(arm: str, evidence: Evidence) -> bool:
    """Whether the best rate is the lowest or highest of several that were tried."""
    rates = rates_of(arm, evidence)
    return len(rates) > 1 and evidence.best.get(arm) in (rates[0], rates[-1])
