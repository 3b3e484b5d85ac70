"""Learning and forgetting against budget: full finetuning held back in several ways, and LoRA."""

from __future__ import annotations

from laura.report.arms import is_regularised, representatives
from laura.report.charts import learning_curves
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study
from laura.results.schema import Summary


def compared(summary: Summary) -> list[str]:
    """Names of the regularised arms and of the plain ones; empty where none is regularised."""
    held = {arm.name for arm in summary.arms if is_regularised(arm)}
    if not held:
        return []
    beside = representatives(summary, [a.name for a in summary.arms if a.name not in held])
    return [arm.name for arm in summary.arms if arm.name in held or arm.name in beside]


def draw(study: Study) -> list[Panel]:
    """Panels for the leading task, then the leading measures of forgetting."""
    summary = study.summary
    arms = compared(summary)
    names = [summary.primary] if summary.primary else []
    names += summary.forgetting_measures[:2]
    return learning_curves.panels(summary, names, arms) if arms else []


CHART = Chart(
    name="regularisers",
    title="Regularisers: learning and forgetting against budget",
    explanation=(
        "Full finetuning alone, with weight decay, dropout or decay toward the base (L2-SP), "
        "beside the plainest arms of LoRA by rank (figure 4 of Biderman et al. 2024). A "
        "regulariser is worth its price where it keeps the source scores up without pulling the "
        "target score down."
    ),
    draw=draw,
)
