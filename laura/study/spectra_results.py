"""Spectra and subspaces of a study: where they lie, and reading them back. No torch.

base/analysis/spectra.json             of the base, once
runs/ID/analysis/STEP/spectra.json     of one checkpoint
analysis/subspaces.json                of the best lora and the best full arm
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from laura.results.errors import StoreError
from laura.results.schema import CheckpointSpectra, F, SubspaceOverlap, faults_of
from laura.results.store import StudyStore, read_json
from laura.study.evidence import Evidence, Point

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
    """The points whose weights the recipe wants analysed: at each seed's best rate."""
    wanted = evidence.recipe.analysis.spectra
    budgets = evidence.recipe.budget.tokens or evidence.recipe.budget.epochs or []
    if wanted == "none" or not budgets:
        return []
    return [
        point
        for point in evidence.points
        if evidence.is_chosen(point) and (wanted == "all" or point.budget == budgets[-1])
    ]


def read_spectra(store: StudyStore, evidence: Evidence, gaps: list[str]) -> list[CheckpointSpectra]:
    """The `spectra` part of a study's analysis: one entry a checkpoint, in order.

    Args:
        store: The study.
        evidence: What it holds.
        gaps: Gets a sentence for each checkpoint that could not be analysed, and for
            each file that is damaged.
    """
    found = []
    for point in analysed_points(evidence):
        file = spectra_file(store, point)
        entry = _kept(file, gaps)
        if entry is None:
            continue
        if "fault" in entry:
            told = f"{point.arm}, seed {point.seed}, step {point.step}"
            gaps.append(f"no spectra of {told}: {entry['fault']}")
            continue
        found += _checked(CheckpointSpectra, [entry], file, gaps)
    return found


def read_subspaces(store: StudyStore, evidence: Evidence, gaps: list[str]) -> list[SubspaceOverlap]:
    """The `subspaces` part of a study's analysis; `gaps` as in `read_spectra`."""
    section = evidence.recipe.analysis
    if section.spectra == "none" or section.subspace_k is None:
        return []
    file = subspaces_file(store)
    rows = (_kept(file, gaps) or {}).get("matrices", [])
    return _checked(SubspaceOverlap, rows if isinstance(rows, list) else [rows], file, gaps)


def _checked(kind: type[F], rows: list[Any], file: Path, gaps: list[str]) -> list[F]:
    """Rows of a file of the weights' analysis; `gaps` gets the faults of a damaged one."""
    try:
        return [kind.model_validate(_without_format(row)) for row in rows]
    except ValidationError as error:
        gaps.append(f"{file} is damaged: {faults_of(error)}; delete it and give the command again")
        return []


def _without_format(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {key: value for key, value in row.items() if key != "format"}


def _kept(file: Path, gaps: list[str]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        value = read_json(file)
    except StoreError as error:
        gaps.append(str(error))
        return None
    return value if isinstance(value, dict) else None
