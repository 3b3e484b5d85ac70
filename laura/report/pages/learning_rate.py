"""Scores against learning rate."""

from __future__ import annotations

from laura.report.blocks import Block, Figure, ReportPage, always
from laura.report.study import Study


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    return [Figure("learning_rates")]


PAGE = ReportPage("learning-rate", "Learning rate", always, blocks)
