"""Which modules, which rank, which alpha."""

from __future__ import annotations

from laura.report.arms import families, setting
from laura.report.blocks import Block, Figure, ReportPage
from laura.report.charts.ranks import compared, targets
from laura.report.pages.parts import scores_table
from laura.report.study import Study


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if compared(study.summary) or families(study.summary, "alpha"):
        return ""
    return (
        "no two arms of LoRA differ in rank, modules or alpha; add arms such as "
        "`lora-mlp: {method: lora, rank: 64, targets: mlp}`"
    )


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    summary = study.summary
    found: list[Block] = [Figure("ranks")] if compared(summary) else []
    if families(summary, "alpha"):
        found.append(Figure("alphas"))
    arms = {
        arm.name: f"rank {setting(arm, 'rank'):g}, alpha {setting(arm, 'alpha'):g}, {targets(arm)}"
        for arm in summary.arms
        if arm.method == "lora"
    }
    caption = "Arms of LoRA by modules, rank and alpha"
    return [*found, scores_table(summary, "variants-table", caption, "modules and rank", arms)]


PAGE = ReportPage("variants", "Modules, rank, alpha", missing, blocks)
