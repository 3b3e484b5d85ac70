"""The trials of one family of arms, asked of Optuna and told to it.

Optuna's memory is `STUDY/study.journal`, shared by every worker and every command on
the study. What was added is read for each question, under a lock, and each trial is
drawn by a sampler seeded with its own number: what is asked next depends on the journal
alone, not on the process, so a search that was killed and continued asks for the same
trials as one that was not. If the journal is lost, the same trials are asked for again
and their finished runs are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from laura.recipe.search import RATE_DIGITS, Family
from laura.recipe.sections import SearchSection
from laura.results.errors import StoreError
from laura.results.store import content_hash, disk_faults
from laura.study.choosing import Outcome
from laura.study.sharing import claimed, held

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
