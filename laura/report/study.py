"""A study as the report sees it: the summary, and beside it whatever else lies in the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from laura.errors import StoreError, UsageError
from laura.report.analysis import Analysis, read_analysis
from laura.report.claims import Claim, Recommendation, read_claims, read_recommendation
from laura.report.costs import Costs, read_costs
from laura.report.gaps import gaps
from laura.report.reading import Summary, read_summary
from laura.report.side_by_side import Examples, read_examples
from laura.store import disk_faults

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """All that a report is drawn from; only the summary must be there.

    Attributes:
        faults: What lies in the folder and could not be read, in words.
    """

    summary: Summary
    analysis: Analysis = field(default_factory=Analysis)
    claims: list[Claim] = field(default_factory=list)
    recommendation: Recommendation | None = None
    costs: Costs | None = None
    examples: list[Examples] = field(default_factory=list)
    recipe: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def gaps(self) -> list[str]:
        """What is missing, in words."""
        return [*gaps(self.summary), *self.faults]


def read_study(folder: Path) -> Study:
    """Read a study folder; what is damaged beside the summary becomes a sentence.

    Raises:
        StoreError: no folder, no summary.json, or a damaged one.
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
        extra("Analyses", read_analysis, Analysis()),
        extra("Claims", read_claims, []),
        extra("Recommendations", read_recommendation, None),
        extra("Costs", read_costs, None),
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
