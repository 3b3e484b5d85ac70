"""Learning and forgetting against budget: full finetuning held back in several ways, and LoRA."""

from __future__ import annotations

from laura.report.arms import is_regularised
from laura.report.charts import learning_curves
from laura.report.charts.panel import Chart, Panel
from laura.report.reading import Summary
from laura.report.study import Study


def compared(summary: Summary) -> list[str]:
    """Names of the arms that belong here; empty where none is regularised."""
    if not any(is_regularised(arm) for arm in summary.arms):
        return []
    return [arm.name for arm in summary.arms if arm.method in ("full", "lora")]


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
        "beside LoRA (figure 4 of Biderman et al. 2024). A regulariser is worth its price where "
        "it keeps the source scores up without pulling the target score down."
    ),
    draw=draw,
)
