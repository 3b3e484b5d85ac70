"""Optuna's trials: the same whatever interrupts them, and true to the bound."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.search import Family
from laura.recipe.sections import SearchSection
from laura.results.errors import StoreError
from laura.study.choosing import LOST, Outcome
from laura.study.search import STARTUP_TRIALS, Trial, Trials

RANKS = ["2", "4", "8"]
FAMILY = Family("lora", {"rank": RANKS}, {(r,): f"lora-rank-{r}" for r in RANKS}, 1e-5, 1e-2)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


def fake(arm: str, rate: float) -> Outcome:
    """Learning grows with rank and is best at 1e-3; forgetting grows with rank and rate."""
    rank = int(arm.rpartition("-")[2])
    learning = rank / 8 - (math.log10(rate) + 3) ** 2
    return Outcome(learning, 0.02 * rank + 0.1 * (math.log10(rate) + 5) / 3)


def make(study: Path, budgets: list[float] = [1.0], **section: Any) -> Trials:  # noqa: B006
    known = {"sampler": "tpe", "trials": 25, **section}
    return Trials(FAMILY, SearchSection(**known), budgets, study)


def run(
    trials: Trials, judge: Callable[[str, float], Outcome] = fake, stop: int | None = None
) -> list[Trial]:
    """Carry out what is left; `stop` leaves the trial of that number begun."""
    seen = []
    while True:
        with trials.claim() as trial:
            if trial is None:
                return seen
            seen.append(trial)
            if trial.number == stop:
                return seen
            trials.tell(trial, judge(trial.arm, trial.learning_rate))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_killed_and_continued_asks_for_the_same_trials(sampler: str, tmp_path: Path) -> None:
    whole = run(make(tmp_path / "whole", sampler=sampler))
    assert [trial.number for trial in whole] == list(range(25))
    parts: dict[int, Trial] = {}
    for stop in (0, 3, 3, 11, 24, None):
        for trial in run(make(tmp_path / "parts", sampler=sampler), stop=stop):
            assert parts.setdefault(trial.number, trial) == trial, "one begun goes on as it was"
    assert list(parts.values()) == whole
    # Another seed is another search, more trials are the same one.
    assert run(make(tmp_path / "other", sampler=sampler, seed=1))[:5] != whole[:5]
    more = run(make(tmp_path / "parts", sampler=sampler, trials=27))
    assert [trial.number for trial in more] == [25, 26]


def test_a_lost_or_cut_journal_loses_nothing(tmp_path: Path) -> None:
    whole = run(make(tmp_path))
    journal = tmp_path / "study.journal"
    text = journal.read_bytes()
    journal.unlink()
    assert run(make(tmp_path)) == whole
    # A power cut in the middle of a line: from there it is asked and told again.
    journal.write_bytes(text[: 2 * len(text) // 3])
    again = run(make(tmp_path))
    assert again == whole[-len(again) :] and len(again) < 25
    assert make(tmp_path).counts() == (25, 25)
    journal.write_bytes(b"nonsense\n" + text)
    with pytest.raises(StoreError, match="delete it and give the same command again"):
        make(tmp_path).counts()


def test_the_best_respects_the_bound_and_nears_brute_force(tmp_path: Path) -> None:
    bound = 0.15
    rates = [10 ** (-5 + 3 * i / 400) for i in range(401)]
    everything = [fake(f"lora-rank-{r}", rate) for r in RANKS for rate in rates]
    optimum = max(o.value for o in everything if o.forgetting <= bound)
    assert optimum < max(o.value for o in everything) - 0.1, "the bound matters"
    seen = run(make(tmp_path, trials=60, max_forgetting=bound))
    found = [fake(trial.arm, trial.learning_rate) for trial in seen]
    best = max(o.value for o in found if o.forgetting <= bound)
    assert optimum - 0.1 < best <= optimum + 1e-3
    # It learns where the bound is: allowed trials become more, and are more than by chance.
    share = sum(o.forgetting <= bound for o in everything) / len(everything)
    late = [o.forgetting <= bound for o in found[20:]]
    assert sum(late) / len(late) > share
    free = run(make(tmp_path, trials=60))
    assert max(fake(t.arm, t.learning_rate).value for t in free) > optimum


def test_diverged_trials_are_told_as_the_worst_and_avoided(tmp_path: Path) -> None:
    def judge(arm: str, rate: float) -> Outcome:
        return LOST if rate > 1e-4 else fake(arm, rate)

    for bound in (None, 1.0):
        folder = tmp_path / str(bound)
        seen = run(make(folder, trials=40, max_forgetting=bound), judge)
        late = [trial.learning_rate > 1e-4 for trial in seen[20:]]
        assert sum(late) < 10, "two thirds of the range diverge, and are left"
        assert make(folder, trials=40, max_forgetting=bound).counts() == (40, 40)


def test_the_median_stops_what_is_worse_than_half(tmp_path: Path) -> None:
    trials = make(tmp_path, [100.0, 200.0, 400.0], pruner="median", sampler="random")
    losses = [[(7 * n + 3 * place) % 10 + n / 100 for place in range(3)] for n in range(25)]
    complete: list[list[float]] = []
    stopped = 0
    while True:
        with trials.claim() as trial:
            if trial is None:
                break
            row = losses[trial.number]
            for place in range(2):
                # Optuna's rule (MedianPruner): the best so far against the median at this point.
                worse = len(complete) >= STARTUP_TRIALS and min(row[: place + 1]) > (
                    statistics.median(other[place] for other in complete)
                )
                assert trials.hopeless(trial, place, row[place]) == worse
                # Asked again after a kill in between, it says the same.
                assert trials.hopeless(trial, place, row[place]) == worse
                if worse:
                    stopped += 1
                    trials.tell(trial, None)
                    break
            else:
                complete.append(row)
                trials.tell(trial, fake(trial.arm, trial.learning_rate))
    assert 0 < stopped < 20 and stopped + len(complete) == 25


def test_hyperband_stops_some_at_early_points(tmp_path: Path) -> None:
    trials = make(tmp_path, [100.0, 300.0, 900.0], pruner="hyperband", trials=30)
    ends = []
    while True:
        with trials.claim() as trial:
            if trial is None:
                break
            loss = abs(math.log10(trial.learning_rate) + 3)
            place = next((p for p in range(2) if trials.hopeless(trial, p, loss)), None)
            ends.append((loss, place))
            trials.tell(trial, None if place is not None else Outcome(-loss, 0.0))
    stopped = [loss for loss, place in ends if place is not None]
    kept = [loss for loss, place in ends if place is None]
    assert stopped and kept
    assert statistics.fmean(stopped) > statistics.fmean(kept)


def test_two_that_ask_at_once_get_different_trials(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    with first.claim() as one, second.claim() as other:
        assert one is not None and other is not None
        assert {one.number, other.number} == {0, 1}
        # A third, of a family that is nearly done, has nothing to begin.
        with make(tmp_path, trials=2).claim() as none:
            assert none is None
    # Both were left; they are taken over, in order, as they were.
    taken = list(itertools.islice(run(make(tmp_path)), 2))
    assert taken == [one, other]


def test_one_arm_at_one_rate_is_tried_once(tmp_path: Path) -> None:
    family = Family("full", {}, {(): "full"}, 1e-4, 1e-4)
    trials = Trials(family, SearchSection(sampler="tpe"), [1.0], tmp_path)
    seen = run(trials, lambda arm, rate: Outcome(0.0, 0.0))
    assert seen == [Trial(0, "full", 1e-4)]
