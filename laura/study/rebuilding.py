"""Writing what follows from a study folder alone: summary, costs, analysis, claims. No torch."""

from __future__ import annotations

from pathlib import Path

from laura.recipe.sections import Recipe
from laura.results.errors import RecipeError, StoreError, first_line
from laura.results.progress import SILENT, Progress
from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    COST_FILE,
    Summary,
    refuse_older,
    write_file,
)
from laura.results.store import StudyStore, read_json
from laura.study.claims.judgement import is_carried_out, stored_evidence, write_claims
from laura.study.evidence import Evidence
from laura.study.findings import write_findings
from laura.study.summary import build_costs, build_summary, gather


def rebuild(folder: Path, progress: Progress = SILENT) -> Evidence | None:
    """Write a study's `analysis.json` and `claims.json` anew; where that cannot be, they stay.

    Args:
        folder: The study.
        progress: Told why they stay as they are.

    Returns:
        What the folder holds; None where they stay.

    Raises:
        UsageError: the study's files are of an older format.
    """
    refuse_older(folder)
    if not is_carried_out(folder):
        return None
    try:
        evidence = stored_evidence(folder)
    except (RecipeError, StoreError) as error:
        told = first_line(error)
        progress.say(f"{ANALYSIS_FILE} and {CLAIMS_FILE} of {folder} stay as they are: {told}")
        return None
    write_findings(evidence, StudyStore(folder))
    write_claims(folder, evidence)
    return evidence


def write_summary(store: StudyStore, recipe: Recipe) -> Summary:
    """Build `summary.json`, `analysis.json`, `claims.json` and `cost.json` from the folder."""
    evidence = gather(store, recipe)
    summary = build_summary(evidence)
    write_findings(evidence, store)
    costs = build_costs(evidence, read_json(store.folder / "environment.json"))
    write_file(store.folder / COST_FILE, costs)
    write_file(store.summary_file, summary)
    write_claims(store.folder, evidence)
    return summary
