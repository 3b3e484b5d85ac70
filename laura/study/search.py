"""A search: trials instead of a grid, shared by all workers of all commands on the study."""

from __future__ import annotations

import shutil

from laura.recipe.search import Family, families_of
from laura.results.progress import Bar
from laura.results.store import disk_faults, read_json, write_json
from laura.results.task_result import VALIDATION, TaskResult
from laura.study.choosing import LOST, Outcome, outcome_of
from laura.study.session import RunSpec, Session
from laura.study.sharing import BUSY
from laura.study.summary import gather
from laura.study.trials import Trial, Trials
from laura.study.workers import Carry, Crew


class Search:
    """All trials of a recipe.

    Args:
        session: The open study.
    """

    def __init__(self, session: Session) -> None:
        self._session, recipe = session, session.recipe
        self._budgets = list(recipe.budget.tokens or recipe.budget.epochs or [])
        self._families = [
            Trials(family, recipe.search, self._budgets, session.store.folder, self._made(family))
            for family in families_of(recipe.arms, recipe.search.families)
            # Nothing is drawn for checkpoints made elsewhere: they are what they are.
            if any(recipe.arms[arm].external is None for arm in family.arms.values())
        ]

    def _made(self, family: Family) -> list[str]:
        recipe = self._session.recipe
        specs = [
            RunSpec(arm, family.low, recipe.seeds[0], recipe.budget) for arm in family.arms.values()
        ]
        return [self._session.run_store(spec).folder.name for spec in specs]

    def counts(self) -> tuple[int, int]:
        """How many trials have ended, and how many have not."""
        ended = [min(one.counts()[1], one.wanted) for one in self._families]
        return sum(ended), sum(one.wanted for one in self._families) - sum(ended)

    def carry_out(self, crew: Crew, bar: Bar) -> None:
        """Try until every family has had its trials; `bar` counts them.

        Raises:
            LauraError: what stopped a run; the others save where they are.
        """
        left = self.counts()[1]
        own: list[Trial] = []
        if left:
            crew.share(lambda carry: self._work(carry, crew, own, bar), left)
        if len(own) < left:
            crew.shared = True
            bar.advance(left - len(own))

    def _work(self, carry: Carry, crew: Crew, own: list[Trial], bar: Bar) -> None:
        while True:
            waiting = [one for one in self._families if one.counts()[1] < one.wanted]
            if not waiting:
                return
            # Families advance together, so that each knows much before it asks for more.
            for trials in sorted(waiting, key=lambda one: one.counts()[0]):
                with trials.claim() as trial:
                    if trial is not None:
                        self._try(trials, trial, carry, crew)
                        own.append(trial)
                        bar.advance()
                        break
            else:
                crew.wait()  # the rest is being tried by others

    def _try(self, trials: Trials, trial: Trial, carry: Carry, crew: Crew) -> None:
        recipe, rate = self._session.recipe, trial.learning_rate
        name = f"{trials.family.name}, trial {trial.number + 1} of {trials.wanted}"
        self._session.progress.say(f"{name}: {trial.arm} at {rate:g}")
        stops = recipe.search.pruner != "none"
        specs = self._session.specs(trial.arm, rate, recipe.seeds[0])
        place = 0
        for spec in specs:
            count = len(spec.budget.tokens or spec.budget.epochs or [])
            for points in range(1, count + 1) if stops else [count]:
                while (state := carry([spec], None if points == count else points)[0]) == BUSY:
                    crew.wait()
                if state == "diverged":
                    trials.tell(trial, LOST)
                    return
                last = spec is specs[-1] and points == count
                if stops and not last:
                    if trials.hopeless(trial, place, self._validation(spec, points - 1)):
                        self._give_up(spec, place)
                        trials.tell(trial, None)
                        return
                place += 1
        trials.tell(trial, self._outcome(specs))

    def _outcome(self, specs: list[RunSpec]) -> Outcome:
        store, recipe = self._session.store, self._session.recipe
        run = self._session.run_store(specs[-1]).folder.name
        evidence = gather(store, recipe, {run})
        point = next(point for point in evidence.points if point.budget == self._budgets[-1])
        found = outcome_of(point, evidence)
        assert found is not None, "every budget point of a run that is done is measured"
        return found

    def _validation(self, spec: RunSpec, place: int) -> float:
        run = self._session.run_store(spec)
        mark = read_json(run.folder / "run.json")["points"][place]
        result = TaskResult.read(run.evaluation(mark["step"], VALIDATION))
        return result.metrics["nats_per_token"].value

    def _give_up(self, spec: RunSpec, place: int) -> None:
        """Note on the run that its search stopped it; what it would need to go on is deleted."""
        run = self._session.run_store(spec)
        if run.state == "done":
            return  # its budget is a run of its own, and the next one is not begun
        with disk_faults(run.folder):
            (run.folder / "legs.json").unlink(missing_ok=True)
            shutil.rmtree(run.folder / "resume", ignore_errors=True)
        budget = self._budgets[place]
        reason = f"its validation loss at budget {budget:g} was among the worse ones"
        write_json(run.folder / "failed.json", {"kind": "pruned", "reason": reason})
