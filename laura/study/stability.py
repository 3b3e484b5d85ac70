"""How smoothly the runs of a study trained: loss spikes, for `analysis.json`. No torch."""

from __future__ import annotations

from typing import Any

from laura.analysis.spikes import loss_spikes
from laura.results.schema import RunSpikes
from laura.study.evidence import Evidence


def read_spikes(evidence: Evidence) -> list[RunSpikes]:
    """The part `spikes` of analysis.json: one entry for every run that took steps.

    Diverged runs are among them.
    """
    rows = []
    for run in evidence.runs:
        curves = _curves(run.metrics())
        if not curves:
            continue
        found = [
            (steps[spike.start], spike.rise)
            for fresh, steps, losses in curves
            for spike in loss_spikes(losses)
            if spike.start >= fresh
        ]
        rows.append(
            RunSpikes(
                run=run.id,
                arm=run.arm,
                learning_rate=run.learning_rate,
                seed=run.seed,
                count=len(found),
                worst=max((rise for _, rise in found), default=None),
                steps=[step for step, _ in found],
                n=sum(len(steps) - fresh for fresh, steps, _ in curves),
            )
        )
    return rows


def _curves(rows: list[dict[str, Any]]) -> list[tuple[int, list[int], list[float]]]:
    """Steps and losses of the trunk, and of every branch after the trunk it left.

    Each with the number of steps at its beginning that another curve has already told.
    """
    trunk = [row for row in rows if not row["leg"].startswith("branch")]
    legs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["leg"].startswith("branch"):
            legs.setdefault(row["leg"], []).append(row)
    paths = [(0, trunk)] if trunk else []
    for own in legs.values():
        shared = [row for row in trunk if row["step"] < own[0]["step"]]
        paths.append((len(shared), shared + own))
    return [
        (fresh, [row["step"] for row in path], [row["loss"] for row in path])
        for fresh, path in paths
    ]
