"""Full finetuning held back by decay and dropout, beside LoRA."""

from __future__ import annotations

from laura.report.arms import regulariser
from laura.report.blocks import Block, Figure, ReportPage
from laura.report.charts.regularisers import compared
from laura.report.pages.parts import scores_table
from laura.report.study import Study


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if compared(study.summary):
        return ""
    return (
        "no arm of full finetuning has weight decay or dropout; add one, such as "
        "`full-decay: {method: full, weight_decay: 0.1}`, also `attention_dropout`, "
        "`residual_dropout` or `weight_decay_toward: base`"
    )


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    summary = study.summary
    arms = {arm.name: regulariser(arm) for arm in summary.arms if arm.name in compared(summary)}
    table = scores_table(
        summary, "regularised", "What holds each arm back, and its scores", "held back by", arms
    )
    return [Figure("regularisers"), table]


PAGE = ReportPage("regularisers", "Regularisers", missing, blocks)
