"""Spectra and subspaces of a study: where they lie, and reading them back. No torch.

base/analysis/spectra.json             of the base, once
runs/ID/analysis/STEP/spectra.json     of one checkpoint
analysis/subspaces.json                of the best lora and the best full arm
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laura.store import StudyStore, read_json
from laura.study.summary import Evidence, Point

FORMAT = 1


def base_spectra_file(store: StudyStore) -> Path:
    """Where the base's own spectra lie."""
    return store.folder / "base" / "analysis" / "spectra.json"


def spectra_file(store: StudyStore, point: Point) -> Path:
    """Where the spectra of a run at a budget point lie."""
    return store.run(point.run["id"]).analysis(point.step, "spectra")


def subspaces_file(store: StudyStore) -> Path:
    """Where the comparison of directions lies."""
    return store.folder / "analysis" / "subspaces.json"


def analysed_points(evidence: Evidence) -> list[Point]:
    """The points whose weights the recipe wants analysed: at each arm's best rate, every seed."""
    wanted = evidence.recipe.analysis.spectra
    budgets = evidence.recipe.budget.tokens or evidence.recipe.budget.epochs or []
    if wanted == "none" or not budgets:
        return []
    return [
        point
        for point in evidence.points
        if point.learning_rate == evidence.best.get(point.arm)
        and (wanted == "all" or point.budget == budgets[-1])
    ]


def read_spectra(store: StudyStore, evidence: Evidence) -> list[dict[str, Any]]:
    """The `spectra` part of a study's analysis: one entry a checkpoint, in order.

    Raises:
        StoreError: a file is damaged.
    """
    return [entry for entry in _entries(store, evidence) if "fault" not in entry]


def spectra_gaps(store: StudyStore, evidence: Evidence) -> list[str]:
    """Checkpoints whose weights could not be analysed, and why, a sentence each.

    Raises:
        StoreError: a file is damaged.
    """
    return [
        f"No spectra of {entry['arm']}, seed {entry['seed']}, step {entry['step']}: "
        f"{entry['fault']}"
        for entry in _entries(store, evidence)
        if "fault" in entry
    ]


def read_subspaces(store: StudyStore, evidence: Evidence) -> list[dict[str, Any]]:
    """The `subspaces` part of a study's analysis.

    Raises:
        StoreError: the file is damaged.
    """
    file = subspaces_file(store)
    section = evidence.recipe.analysis
    if section.spectra == "none" or section.subspace_k is None or not file.is_file():
        return []
    rows: list[dict[str, Any]] = read_json(file)["matrices"]
    return rows


def _entries(store: StudyStore, evidence: Evidence) -> list[dict[str, Any]]:
    files = [spectra_file(store, point) for point in analysed_points(evidence)]
    return [
        {key: value for key, value in read_json(file).items() if key != "format"}
        for file in files
        if file.is_file()
    ]
