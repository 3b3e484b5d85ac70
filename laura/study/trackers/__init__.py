"""Trackers: one file each beside this one, one line each here.

A file has `connect(name, folder)`: the `Tracker` of the study that is called so and lies there.
Its library is an extra of its own name: `laura-lab[wandb]`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from laura.results.errors import LauraError, MissingExtraError, UsageError

TRACKERS: dict[str, str] = {
    "mlflow": f"{__name__}.mlflow",
    "tensorboard": f"{__name__}.tensorboard",
    "trackio": f"{__name__}.trackio",
    "wandb": f"{__name__}.wandb",
}


Row = tuple[int, dict[str, float]]


class TrackerError(LauraError, RuntimeError):
    """A tracker could not be told."""


class TrackedRun(Protocol):
    """A run as a tracker has it; opened again, it goes on."""

    def log(self, rows: Sequence[Row]) -> None:
        """Numbers by name, each row after so many optimiser steps."""

    def close(self, state: str) -> None:
        """Nothing more for now; `state` is `open`, `done`, `diverged`, `failed` or `pruned`."""


class Tracker(Protocol):
    """Where a study is told to; any call may raise anything."""

    def open(self, run: str, title: str, settings: Mapping[str, Any]) -> TrackedRun:
        """A run by its ID, with what it is called and how it is set up."""

    def conclude(self, answer: str, figures: Sequence[Path]) -> None:
        """What was concluded, and charts as PNG."""


def find(tracker: str) -> Any:
    """The file of a tracker.

    Raises:
        UsageError: there is no such tracker.
        MissingExtraError: its library is not installed.
    """
    if tracker not in TRACKERS:
        near = difflib.get_close_matches(tracker.lower(), TRACKERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"there is no tracker {tracker!r}.{hint} Trackers: {', '.join(TRACKERS)}")
    try:
        return importlib.import_module(TRACKERS[tracker])
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{tracker} is not installed: python -m pip install 'laura-lab[{tracker}]'"
        ) from error
