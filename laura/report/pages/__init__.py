"""The pages of a report: one file each, and one line each in the table below."""

from __future__ import annotations

from laura.report.blocks import ReportPage
from laura.report.pages import (
    claims,
    cost,
    diversity,
    learning_rate,
    overview,
    regularisers,
    replay,
    runs,
    samples,
    scores,
    settings,
    spectra,
    variants,
)

PAGES: tuple[ReportPage, ...] = (
    overview.PAGE,
    scores.PAGE,
    learning_rate.PAGE,
    regularisers.PAGE,
    spectra.PAGE,
    diversity.PAGE,
    replay.PAGE,
    variants.PAGE,
    cost.PAGE,
    claims.PAGE,
    runs.PAGE,
    samples.PAGE,
    settings.PAGE,
)

__all__ = ["PAGES"]
