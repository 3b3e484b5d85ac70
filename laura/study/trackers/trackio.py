"""trackio: a project a study, on this machine, or on the Space that `TRACKIO_SPACE_ID` names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trackio
import trackio.run

from laura.study.trackers import Row

for _speaks in (trackio, trackio.run):  # to the standard output, which is the command's
    _speaks.print = lambda *words, **how: None


class TrackioRun:
    """A run, found again by its name."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, rows: Sequence[Row]) -> None:
        """See `TrackedRun.log`."""
        for step, values in rows:
            self._run.log(values, step=step)

    def close(self, state: str) -> None:
        """See `TrackedRun.close`."""
        self._run.finish()


class Trackio:
    """A project."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _init(self, name: str, settings: Mapping[str, Any]) -> Any:
        return trackio.init(
            project=self._name, name=name, config=dict(settings), resume="allow", embed=False,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
        )  # fmt: skip

    def open(self, run: str, title: str, settings: Mapping[str, Any]) -> TrackioRun:
        """See `Tracker.open`."""
        return TrackioRun(self._init(f"{title} {run}", settings))

    def conclude(self, answer: str, figures: Sequence[Path]) -> None:
        """See `Tracker.conclude`."""
        run = self._init("study", {"answer": answer})
        run.log({figure.stem: trackio.Image(str(figure)) for figure in figures})
        run.finish()


def connect(name: str, folder: Path) -> Trackio:
    """The tracker of a study."""
    return Trackio(name)
