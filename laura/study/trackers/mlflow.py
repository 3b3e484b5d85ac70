"""MLflow: an experiment a study, a run each, wherever `MLFLOW_TRACKING_URI` points."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from laura.study.trackers import Row

STATES = {"open": "RUNNING", "done": "FINISHED", "pruned": "KILLED"}
MOST_METRICS = 1000  # of one call
RUN = "laura.run"  # the tag by which a run is found again


class MlflowRun:
    """A run of the experiment."""

    def __init__(self, client: MlflowClient, run: str) -> None:
        self._client, self._run = client, run

    def log(self, rows: Sequence[Row]) -> None:
        """See `TrackedRun.log`."""
        now = int(1000 * time.time())
        told = [Metric(name, value, now, step) for step, row in rows for name, value in row.items()]
        for start in range(0, len(told), MOST_METRICS):
            part = told[start : start + MOST_METRICS]
            self._client.log_batch(self._run, metrics=part)

    def close(self, state: str) -> None:
        """See `TrackedRun.close`."""
        self._client.set_terminated(self._run, STATES.get(state, "FAILED"))


class Mlflow:
    """An experiment."""

    def __init__(self, name: str) -> None:
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", name)
        found = self._client.get_experiment_by_name(name)
        self._experiment = (
            self._client.create_experiment(name) if found is None else found.experiment_id
        )

    def _run(self, run: str, title: str) -> str:
        where = f"tags.`{RUN}` = '{run}'"
        found = self._client.search_runs([self._experiment], where, max_results=1)
        if found:
            return str(found[0].info.run_id)
        made = self._client.create_run(self._experiment, run_name=title, tags={RUN: run})
        return str(made.info.run_id)

    def open(self, run: str, title: str, settings: Mapping[str, Any]) -> MlflowRun:
        """See `Tracker.open`."""
        found = self._run(run, title)
        known = self._client.get_run(found).data.params
        for name, value in settings.items():
            if name not in known:
                self._client.log_param(found, name, value)
        return MlflowRun(self._client, found)

    def conclude(self, answer: str, figures: Sequence[Path]) -> None:
        """See `Tracker.conclude`."""
        run = self._run("study", "study")
        self._client.set_tag(run, "mlflow.note.content", answer)
        for figure in figures:
            self._client.log_artifact(run, str(figure), "figures")
        self._client.set_terminated(run)


def connect(name: str, folder: Path) -> Mlflow:
    """The tracker of a study."""
    return Mlflow(name)
