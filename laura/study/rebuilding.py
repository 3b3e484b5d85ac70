"""Writing again what follows from a study folder alone: analysis and claims. No torch."""

from __future__ import annotations

from pathlib import Path

from laura.results.errors import RecipeError, StoreError, first_line
from laura.results.progress import SILENT, Progress
from laura.results.schema import ANALYSIS_FILE, CLAIMS_FILE, refuse_older
from laura.results.store import StudyStore
from laura.study.claims.judgement import is_carried_out, stored_evidence, write_claims
from laura.study.findings import write_findings


def rebuild(folder: Path, progress: Progress = SILENT) -> None:
    """Write a study's `analysis.json` and `claims.json` anew; where that cannot be, they stay.

    Args:
        folder: The study.
        progress: Told why they stay as they are.

    Raises:
        UsageError: the study's files are of an older format.
    """
    refuse_older(folder)
    if not is_carried_out(folder):
        return
    try:
        evidence = stored_evidence(folder)
    except (RecipeError, StoreError) as error:
        told = first_line(error)
        progress.say(f"{ANALYSIS_FILE} and {CLAIMS_FILE} of {folder} stay as they are: {told}")
        return
    write_findings(evidence, StudyStore(folder))
    write_claims(folder, evidence)
