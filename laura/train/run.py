"""One run from its first step to `done.json`, or to the reason why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laura.errors import DivergenceError
from laura.models.device import reset_peak_memory
from laura.models.lean import lean
from laura.progress import SILENT, Progress
from laura.recipe import TrainSection
from laura.store import RunStore, disk_faults, read_json, remove_leftovers, write_folder, write_json
from laura.train.batches import BatchPlan
from laura.train.loop import StoppedForNow, Trainer
from laura.train.optimisers import build_optimiser
from laura.train.schedules import Leg, plan_legs


def train_run(
    model: Any,
    run: RunStore,
    section: TrainSection,
    plan: BatchPlan,
    *,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    write_weights: Callable[[Path], None],
    validate: Callable[[], float] | None = None,
    stop: int | None = None,
    title: str = "training",
    progress: Progress = SILENT,
) -> str:
    """Train until every budget point has its weights, continuing what was begun.

    Args:
        model: As it is before the first step; what requires a gradient is trained.
        run: The run's folder.
        section: The recipe's `train`.
        plan: Batches and budget points in steps.
        learning_rate: Peak rate.
        weight_decay: Decay, in the optimiser's own convention.
        seed: Seed of the run.
        write_weights: Writes the model's weights into a folder.
        validate: Mean validation loss, for `train.validate_every`.
        stop: Budget point, in steps, after which to stop for now; None for the last.
        title: Words on the progress bar.
        progress: Where to report.

    Returns:
        `done`, `diverged`, or `open` where it was stopped for now.
    """
    if run.state in ("done", "diverged"):
        return run.state
    remove_leftovers(run.folder)
    (run.folder / "failed.json").unlink(missing_ok=True)  # of a search that had given it up
    legs = plan_legs(section, plan.points)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def keep(step: int) -> None:
        facts = {"step": step, "learning_rate": learning_rate, "seed": seed}
        write_folder(run.checkpoint(step), write_weights, facts)
        if step == stop and step < plan.points[-1]:
            raise StoppedForNow

    reset_peak_memory(parameters[0].device)
    trainer = Trainer(
        model=model,
        optimiser=build_optimiser(parameters, section, learning_rate, weight_decay),
        section=section,
        learning_rate=learning_rate,
        seed=seed,
        plan=plan,
        run=run,
        keep=keep,
        validate=validate,
    )
    try:
        with lean(model), progress.bar(title, trainer.tokens_of(legs), "tokens") as bar:
            for leg in legs:
                _run_leg(trainer, leg, legs, run, bar)
    except StoppedForNow:
        return "open"
    except DivergenceError as error:
        write_json(run.folder / "failed.json", {"kind": "diverged", "reason": str(error)})
        _forget(run, legs, legs)
        return "diverged"
    write_json(run.folder / "done.json", {"steps": plan.points[-1], "points": plan.points})
    _forget(run, legs, legs)
    return "done"


def _run_leg(trainer: Trainer, leg: Leg, legs: list[Leg], run: RunStore, bar: Any) -> None:
    record = run.folder / "legs.json"
    complete = set(read_json(record)["complete"]) if record.is_file() else set()
    if leg.name in complete:
        bar.advance(trainer.tokens_of([leg]))
        return
    trainer.run_leg(leg, bar)
    complete.add(leg.name)
    write_json(record, {"complete": sorted(complete)})
    needed = {other.origin for other in legs if other.name not in complete}
    _forget(run, legs, [old for old in legs if old.name in complete - needed])


def _forget(run: RunStore, legs: list[Leg], old: list[Leg]) -> None:
    """Delete states nothing will continue from; the whole folder after the last leg."""
    with disk_faults(run.folder):
        for leg in old:
            shutil.rmtree(run.folder / "resume" / leg.name, ignore_errors=True)
        if len(old) == len(legs):
            shutil.rmtree(run.folder / "resume", ignore_errors=True)
