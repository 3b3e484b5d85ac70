"""Runs from their first step to `done.json`, or to the reason why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from laura.models.device import reset_peak_memory, resolve_precision
from laura.models.lean import lean
from laura.models.losses import CROSS_ENTROPY, Objective
from laura.recipe.sections import TrainSection
from laura.results.progress import SILENT, Progress
from laura.results.store import (
    RunStore,
    disk_faults,
    read_json,
    remove_leftovers,
    write_folder,
    write_json,
)
from laura.training.batches import BatchPlan
from laura.training.cohort import ParameterSet, gradients_for
from laura.training.flops import count_work
from laura.training.learner import Learner, LossSum
from laura.training.loop import StoppedForNow, Trainer, in_turn, run_leg
from laura.training.on_policy import OnPolicy, PolicyQuestions
from laura.training.optimisers import STANDARD, StepRule
from laura.training.remedies import beside_base
from laura.training.schedules import Leg, plan_legs


def train_runs(
    model: Any,
    runs: Sequence[tuple[RunStore, float]],
    section: TrainSection,
    plan: BatchPlan,
    *,
    rule: StepRule = STANDARD,
    seed: int,
    write_weights: Callable[[Path], None],
    validate: Callable[[LossSum], float] | None = None,
    objective: Objective = CROSS_ENTROPY,
    begin: Callable[[], None] | None = None,
    questions: PolicyQuestions | None = None,
    stop: int | None = None,
    halt: Callable[[], bool] = lambda: False,
    title: str = "training",
    progress: Progress = SILENT,
) -> list[str]:
    """Train runs that differ in the learning rate alone, in lock-step on one model.

    Each has its own parameters, clipping, metrics, checkpoints and states, and ends where
    it would alone (see `cohort.py`), so runs may join or part whenever training is stopped.
    One that diverges drops out. With `train.devices` above 1 this is the first process of a
    group, of which the others `follow` (see `sharded.py`), and there is one run.

    Args:
        model: As it is before the first step of every run, but for what `begin` changes.
        runs: Folder and peak rate of each.
        section: The recipe's `train`.
        plan: Batches and budget points in steps.
        rule: How the arm's parameters are stepped.
        seed: Seed of the runs.
        write_weights: Writes the model's weights into a folder.
        validate: Mean validation loss, for `train.validate_every`; given what sums that of a row.
        objective: What the gradients follow; a base that it reads is the model before `begin`.
        begin: Puts in the weights of the first step; None where they are the model's.
        questions: Of a single run: what the model answers, to learn that and not the plan's rows.
        stop: Of a single run: budget point, in steps, after which to stop for now.
        halt: Asked after each step; all stop there for now when it says so.
        title: Words on the progress bar.
        progress: Where to report.

    Returns:
        `done` or `diverged` of each run, or `open` where it was stopped for now.
    """
    left = [(run, rate) for run, rate in runs if run.state not in ("done", "diverged")]
    if not left:
        return [run.state for run, _ in runs]
    stop = None if stop == plan.points[-1] else stop
    legs = plan_legs(section, plan.points, plan.hot)
    precision = resolve_precision(section.precision, model.device)
    objective = beside_base(objective, model, plan, precision)
    if begin is not None:
        begin()
    work = count_work(model, objective.reads_base)
    trainers = []
    with ExitStack() as held:
        held.enter_context(lean(model, section.recompute))
        # Every run starts from the model as it is now: all are copied before one is lent.
        lend = [ParameterSet(model).lend for _ in left] if len(left) > 1 else [_nothing]
        for (run, rate), put_in in zip(left, lend, strict=True):
            remove_leftovers(run.folder)
            (run.folder / "failed.json").unlink(missing_ok=True)  # a search had given it up
            put_in()
            learner = _learner(held, questions, model, section, rate, rule, objective)
            trainer = Trainer(
                learner=learner,
                work=work,
                section=section,
                learning_rate=rate,
                seed=seed,
                plan=plan,
                run=run,
                keep=_keeper(run, learner, write_weights, stop, learning_rate=rate, seed=seed),
                validate=validate,
                lend=put_in,
            )
            trainers.append(trainer)
        reset_peak_memory(learner.device)
        try:
            _run_legs(trainers, legs, halt, title, progress)
        except StoppedForNow:
            return ["open" for _ in runs]
    for trainer in trainers:
        _close_run(trainer, plan, legs)
    return [run.state for run, _ in runs]


def _learner(
    held: ExitStack,
    questions: PolicyQuestions | None,
    model: Any,
    section: TrainSection,
    *given: Any,
) -> Learner:
    """The learner of a run, on one device or over several; `held` as long as it learns."""
    if questions is not None:
        return OnPolicy(questions, model, section, *given)
    if section.devices == 1:
        return Learner(model, section, *given)
    from laura.training.sharded import Shards

    return held.enter_context(Shards(model, section, *given))


def _run_legs(
    trainers: Sequence[Trainer],
    legs: list[Leg],
    halt: Callable[[], bool],
    title: str,
    progress: Progress,
) -> None:
    gradients = gradients_for(trainers[0].learner.model) if len(trainers) > 1 else in_turn
    tokens = sum(trainer.tokens_of(legs) for trainer in trainers)
    with progress.bar(title, tokens, "tokens") as bar:
        for leg in legs:
            going = [trainer for trainer in trainers if trainer.failure is None]
            remaining = [t for t in going if leg.name not in _complete(t.run)]
            for trainer in going:
                if trainer not in remaining:
                    bar.advance(trainer.tokens_of([leg]))
            if remaining:
                run_leg(remaining, gradients, leg, bar, halt)
            for trainer in remaining:
                _close_leg(trainer, leg, legs)


def _nothing() -> None:
    """What is trained stands in the model already."""


def _keeper(
    run: RunStore,
    learner: Learner,
    write_weights: Callable[[Path], None],
    stop: int | None,
    **facts: Any,
) -> Callable[[int], None]:
    def keep(step: int) -> None:
        with learner.averaged(), learner.whole():
            write_folder(run.checkpoint(step), write_weights, {"step": step, **facts})
        if step == stop:
            raise StoppedForNow

    return keep


def _complete(run: RunStore) -> set[str]:
    record = run.folder / "legs.json"
    return set(read_json(record)["complete"]) if record.is_file() else set()


def _close_leg(trainer: Trainer, leg: Leg, legs: list[Leg]) -> None:
    if trainer.failure is not None:
        return
    run = trainer.run
    complete = _complete(run) | {leg.name}
    write_json(run.folder / "legs.json", {"complete": sorted(complete)})
    needed = {other.origin for other in legs if other.name not in complete}
    _forget(run, legs, [old for old in legs if old.name in complete - needed])


def _close_run(trainer: Trainer, plan: BatchPlan, legs: list[Leg]) -> None:
    if trainer.failure is None:
        done = {"steps": plan.points[-1], "points": plan.points}
        write_json(trainer.run.folder / "done.json", done)
    _forget(trainer.run, legs, legs)


def _forget(run: RunStore, legs: list[Leg], old: list[Leg]) -> None:
    """Delete states nothing will continue from; the whole folder after the last leg."""
    with disk_faults(run.folder):
        for leg in old:
            shutil.rmtree(run.folder / "resume" / leg.name, ignore_errors=True)
        if len(old) == len(legs):
            shutil.rmtree(run.folder / "resume", ignore_errors=True)
