"""A search: trials instead of a grid, asked of Optuna, shared by all workers and commands.

Optuna's memory is `STUDY/study.journal`, shared by every worker and every command on
the study. What was added is read for each question, under a lock, and each trial is
drawn by a sampler seeded with its own number: what is asked next depends on the journal
alone, not on the process, so a search that was killed and continued asks for the same
trials as one that was not. If the journal is lost, the same trials are asked for again
and their finished runs are found.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from laura.recipe.search import RATE_DIGITS, Family, families_of
from laura.recipe.sections import SearchSection
from laura.results.errors import StoreError
from laura.results.progress import Bar
from laura.results.store import content_hash, disk_faults, read_json, write_json
from laura.results.task_result import VALIDATION, TaskResult
from laura.results.units import budget_text
from laura.study.choosing import LOST, Outcome, outcome_of
from laura.study.runs import RunSpec, specs_of
from laura.study.session import Session
from laura.study.sharing import BUSY, claimed, held
from laura.study.summary import gather
from laura.study.workers import Carry, Crew

JOURNAL = "study.journal"
PLACE = "search"  # folder of the locks
STARTUP_TRIALS = 5  # drawn at random before TPE, and finished before the median judges
RATE, BOUND = "learning_rate", "forgetting"
# Keys of `search` that change nothing of what a trial is.
UNSEARCHED = {"trials", "families", "allow_shared_rate", "seeds", "extend"}


@dataclass(frozen=True)
class Trial:
    """What is to be tried.

    Attributes:
        number: Counted from 0 in its family.
        arm: Name of the arm.
        learning_rate: Peak rate.
    """

    number: int
    arm: str
    learning_rate: float


class Trials:
    """One family's trials.

    Args:
        family: What is searched.
        section: How.
        budgets: The recipe's budget points, rising.
        study: The study folder.
        made: IDs of a run of each arm: they tell the same space apart under other settings.
    """

    def __init__(
        self,
        family: Family,
        section: SearchSection,
        budgets: Sequence[float],
        study: Path,
        made: Sequence[str] = (),
    ) -> None:
        self.family, self._section, self._study = family, section, study
        # Another space, objective, bound or training is another search; more trials are the same.
        what = section.model_dump(mode="json", exclude=UNSEARCHED)
        space = [family.parameters, list(family.arms.values()), family.low, family.high]
        self._mark = content_hash([what, space, list(budgets), *made])[:8]
        self._name = f"{family.name}-{self._mark}"
        self._resources = list[int]()
        for budget in budgets:
            least = self._resources[-1] + 1 if self._resources else 1
            self._resources.append(max(least, round(budget / budgets[0])))
        self._storage: JournalStorage | None = None
        alone = family.low == family.high and len(family.arms) == 1
        self.wanted = 1 if alone else section.trials

    def counts(self) -> tuple[int, int]:
        """How many trials were asked for, and how many of them have ended."""
        with self._opened(0) as study:
            trials = study.get_trials(deepcopy=False)
        return len(trials), sum(trial.state.is_finished() for trial in trials)

    @contextmanager
    def claim(self) -> Iterator[Trial | None]:
        """The next trial, ours while the block lasts; None if nothing is left to begin.

        What a killed command had begun comes first.
        """
        with ExitStack() as stack:
            yield self._next(stack)

    def _next(self, stack: ExitStack) -> Trial | None:
        with self._opened(0) as study:
            known = study.get_trials(deepcopy=False)
        begun = [trial.number for trial in known if not trial.state.is_finished()]
        for number in [*begun, *range(len(known), self.wanted)]:
            if not stack.enter_context(claimed(self._lock(number))):
                continue
            with self._opened(number) as study:
                trials = study.get_trials(deepcopy=False)
                if number < len(trials) and trials[number].state.is_finished():
                    continue
                # Those before it that were only claimed are not asked for yet.
                if number > len(trials):
                    return None
                trial = self._trial(study, number) if number < len(trials) else study.ask()
                return self._drawn(trial)
        return None

    def _drawn(self, trial: optuna.Trial) -> Trial:
        words = []
        for key, values in self.family.parameters.items():
            words.append(str(trial.suggest_categorical(key, values)))
        low, high = self.family.low, self.family.high
        rate = trial.suggest_float(RATE, low, high, log=True)
        rate = min(max(float(f"{rate:.{RATE_DIGITS}g}"), low), high)
        return Trial(trial.number, self.family.arms[tuple(words)], rate)

    def hopeless(self, trial: Trial, place: int, loss: float) -> bool:
        """Whether a trial should stop after a budget point; the loss there is noted.

        Args:
            trial: One that was claimed.
            place: Of the budget point, counted from 0.
            loss: Validation loss there, nats per token.
        """
        step = self._resources[place]
        with self._opened(trial.number) as study:
            asked = self._trial(study, trial.number)
            known = self._frozen(study, trial.number).intermediate_values
            if step not in known:
                asked.report(-loss, step)
            elif step != max(known):
                return False  # it went on from here before it was interrupted
            return asked.should_prune()

    def tell(self, trial: Trial, outcome: Outcome | None) -> None:
        """End a trial; None for one that was stopped early."""
        bound = self._section.max_forgetting
        with self._opened(trial.number) as study:
            if outcome is None:
                study.tell(trial.number, state=TrialState.PRUNED)
                return
            known = self._frozen(study, trial.number).constraints
            if bound is not None and BOUND not in known:
                asked = self._trial(study, trial.number)
                asked.set_constraint(BOUND, outcome.forgetting - bound)
            study.tell(trial.number, outcome.value)

    @contextmanager
    def _opened(self, number: int) -> Iterator[optuna.Study]:
        """Optuna's study of this family, as a trial of this number sees it."""
        journal = self._study / JOURNAL
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with held(self._study / PLACE / "journal.lock"), disk_faults(journal):
            _cut_off(journal)
            try:
                if self._storage is None:
                    backend = JournalFileBackend(str(journal), _Held(str(journal)))
                    self._storage = JournalStorage(backend)
                named = [one.study_name for one in self._storage.get_all_studies()]
                if self._name not in named:
                    optuna.create_study(
                        storage=self._storage, study_name=self._name, direction="maximize"
                    )
                study = optuna.load_study(
                    storage=self._storage,
                    study_name=self._name,
                    sampler=self._sampler(number),
                    pruner=self._pruner(),
                )
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise StoreError(
                    f"{journal} is damaged ({error}); delete it and give the same command again: "
                    "the search asks for the same trials, and their finished runs are kept"
                ) from error
            yield study

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(content_hash([self._section.seed, self.family.name, number])[:8], 16)
        if self._section.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

    def _pruner(self) -> optuna.pruners.BasePruner:
        if self._section.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
        if self._section.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(max_resource=self._resources[-1])
        return optuna.pruners.NopPruner()

    def _lock(self, number: int) -> Path:
        return self._study / PLACE / f"{self._name}-{number}.lock"

    def _frozen(self, study: optuna.Study, number: int) -> FrozenTrial:
        return study.get_trials(deepcopy=False)[number]

    def _trial(self, study: optuna.Study, number: int) -> optuna.Trial:
        """A trial that may have been begun by another process."""
        return optuna.Trial(study, self._frozen(study, number)._trial_id)


class _Held(JournalFileOpenLock):
    """No lock of Optuna's: ours is held already, and does not outlive a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _cut_off(journal: Path) -> None:
    """Drop a last line that a power cut left unfinished; all before it is whole."""
    if not journal.is_file():
        return
    text = journal.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with journal.open("r+b") as file:
            file.truncate(whole)


# ----- all trials of a recipe -----


class Search:
    """All trials of a recipe.

    Args:
        session: The open study.
    """

    def __init__(self, session: Session) -> None:
        self._session, recipe = session, session.recipe
        self._budgets = list(recipe.budget.listed)
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
        specs = specs_of(recipe, trial.arm, rate, recipe.seeds[0])
        place = 0
        for spec in specs:
            count = len(spec.budget.listed)
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
        reason = f"its validation loss at budget {budget_text(budget)} was among the worse ones"
        write_json(run.folder / "failed.json", {"kind": "pruned", "reason": reason})
