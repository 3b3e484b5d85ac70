"""The table of pages: a new one is a function that gives its blocks, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from laura.report.blocks import Block
from laura.report.pages import analyses, overview, scores, settings
from laura.report.study import Study


@dataclass(frozen=True)
class ReportPage:
    """One page of the report.

    Attributes:
        name: What a link calls it.
        title: Its heading, and its name in the navigation.
        blocks: What stands on it; or why the study has nothing for it, and how to get it.
    """

    name: str
    title: str
    blocks: Callable[[Study], list[Block] | str]


PAGES: tuple[ReportPage, ...] = (
    ReportPage("overview", "Overview", overview.overview),
    ReportPage("scores", "Learning and forgetting", scores.scores),
    ReportPage("learning-rate", "Learning rate", scores.learning_rate),
    ReportPage("regularisers", "Regularisers", scores.regularisers),
    ReportPage("spectra", "Spectra", analyses.spectra),
    ReportPage("diversity", "Diversity and pass@k", analyses.diversity),
    ReportPage("replay", "Replay", scores.replay),
    ReportPage("variants", "Modules, rank, alpha", scores.variants),
    ReportPage("cost", "Cost", settings.cost),
    ReportPage("claims", "Claims", overview.claims),
    ReportPage("runs", "Runs", scores.runs),
    ReportPage("samples", "Samples", analyses.samples),
    ReportPage("settings", "Data and settings", settings.settings),
)
