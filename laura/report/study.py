"""A study as the report sees it: the summary, and beside it whatever else lies in the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from laura.report.gaps import gaps
from laura.report.side_by_side import Examples, read_examples
from laura.results.errors import StoreError, UsageError
from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    COST_FILE,
    RECOMMENDATION_FILE,
    SUMMARY_FILE,
    Analysis,
    Costs,
    Judgement,
    Recommendation,
    Summary,
    read_file,
    read_optional,
)
from laura.results.store import disk_faults

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """All that a report is drawn from; only the summary must be there.

    Attributes:
        faults: What lies in the folder and could not be read, in words.
    """

    summary: Summary
    analysis: Analysis = field(default_factory=Analysis)
    judgement: Judgement | None = None
    recommendation: Recommendation | None = None
    costs: Costs | None = None
    examples: list[Examples] = field(default_factory=list)
    recipe: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """The first line of every output: what was found and what to do."""
        if self.judgement is None:
            return "This study was not judged; `laura claims STUDY` does it."
        return self.judgement.answer

    @property
    def gaps(self) -> list[str]:
        """What is missing, in words."""
        return [*gaps(self.summary), *self.faults]


def read_summary(study: Path) -> Summary:
    """Read and check STUDY/summary.json.

    Raises:
        StoreError: no such folder, no summary.json (with what to do), or a damaged one
            (with every fault).
        UsageError: it is of an older format.
    """
    if not study.is_dir():
        raise StoreError(f"{study} is not a folder; give the folder of a study, as in studies/NAME")
    file = study / SUMMARY_FILE
    if not file.is_file():
        raise StoreError(
            f"{study} has no summary.json, so there is nothing to report yet; finish the study "
            "with `laura compare RECIPE` (it continues where it stopped), then report again"
        )
    return read_file(Summary, file)


def read_study(folder: Path) -> Study:
    """Read a study folder; what is damaged beside the summary becomes a sentence.

    Raises:
        StoreError, UsageError: as `read_summary`.
    """
    summary = read_summary(folder)
    faults: list[str] = []

    def extra(what: str, read: Callable[[Path], T], otherwise: T) -> T:
        try:
            return read(folder)
        except (StoreError, UsageError) as error:
            faults.append(f"{what} are not shown: {error}.")
            return otherwise

    return Study(
        summary,
        extra("Analyses", lambda at: read_optional(Analysis, at / ANALYSIS_FILE), None)
        or Analysis(),
        extra("Claims", lambda at: read_optional(Judgement, at / CLAIMS_FILE), None),
        extra(
            "Recommendations",
            lambda at: read_optional(Recommendation, at / RECOMMENDATION_FILE),
            None,
        ),
        extra("Costs", lambda at: read_optional(Costs, at / COST_FILE), None),
        extra("Samples", lambda place: read_examples(place, summary), []),
        _recipe(folder),
        faults,
    )


def _recipe(folder: Path) -> str:
    try:
        with disk_faults(folder / "recipe.yaml"):
            return (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    except StoreError:
        return ""
