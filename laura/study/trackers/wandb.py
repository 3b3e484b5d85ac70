"""Weights & Biases: a project a study, a run each; `WANDB_MODE=offline` needs no network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from laura.study.trackers import Row


class WandbRun:
    """A run, found again by its ID."""

    def __init__(self, run: Any) -> None:
        self._run = run
        # Branches go back in steps, and so does a run that is told again.
        run.define_metric("*", step_metric="step")

    def log(self, rows: Sequence[Row]) -> None:
        """See `TrackedRun.log`."""
        for step, values in rows:
            self._run.log({**values, "step": step})

    def close(self, state: str) -> None:
        """See `TrackedRun.close`."""
        self._run.summary["state"] = state
        self._run.finish(exit_code=0 if state in ("open", "done", "pruned") else 1)


class Wandb:
    """A project."""

    def __init__(self, name: str, folder: Path) -> None:
        self._project, self._folder = os.environ.get("WANDB_PROJECT", name), folder

    def _init(self, run: str, **known: Any) -> Any:
        return wandb.init(
            project=self._project, id=run, resume="allow", reinit="create_new",
            dir=str(self._folder), settings=wandb.Settings(silent=True, console="off"), **known,
        )  # fmt: skip

    def open(self, run: str, title: str, settings: Mapping[str, Any]) -> WandbRun:
        """See `Tracker.open`."""
        return WandbRun(self._init(run, name=title, config=dict(settings)))

    def conclude(self, answer: str, figures: Sequence[Path]) -> None:
        """See `Tracker.conclude`."""
        run = self._init("study", name="study")
        run.log({figure.stem: wandb.Image(str(figure)) for figure in figures})
        run.summary["answer"] = answer
        run.finish()


def connect(name: str, folder: Path) -> Wandb:
    """The tracker of a study."""
    return Wandb(name, folder)
