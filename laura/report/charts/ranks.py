"""Scores against LoRA's rank, one line a choice of modules (Biderman et al. 2024, figure 7)."""

from __future__ import annotations

from laura.report.arms import setting, words
from laura.report.charts import series, style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import final_groups
from laura.report.study import Study
from laura.results.schema import ArmRow, Summary

TOOLTIPS = {
    "series": "modules",
    "arm": "arm",
    "x_text": "rank",
    "alpha": "alpha",
    "value": "score",
    "change": "change from base",
    "rate": "learning rate",
    "seeds": "seeds",
    "n": "n",
}


def compared(summary: Summary) -> list[ArmRow]:
    """Plain arms of LoRA; empty where they differ neither in rank nor in modules."""
    arms = [arm for arm in summary.arms if arm.method == "lora" and setting(arm, "rank")]
    ranks = {setting(arm, "rank") for arm in arms}
    return arms if len(ranks) > 1 or len({targets(arm) for arm in arms}) > 1 else []


def targets(arm: ArmRow) -> str:
    """Which modules an arm adapts, and what else is special about it, in words."""
    told = [words(arm.settings.get("targets", "all"))]
    for name in ("rslora", "dora"):
        told += [name] if arm.settings.get(name) is True else []
    if arm.settings.get("init") not in (None, "default"):
        told.append(words(arm.settings["init"]))
    if (alpha := setting(arm, "alpha")) != 2 * (rank := setting(arm, "rank")):
        told.append(f"alpha {alpha / rank:g}r")
    for name in ("lora_plus_ratio", "replay", "weight_decay", "dropout"):
        value = setting(arm, name)
        told += [f"{name.replace('_', ' ')} {value:g}"] if value not in (0, 1) else []
    return ", ".join(told)


def draw(study: Study) -> list[Panel]:
    """Panels for the leading task and the leading measures of forgetting."""
    summary = study.summary
    names = [summary.primary] if summary.primary else []
    arms = compared(summary)
    panels = [
        _panel(summary, name, arms) for name in [*names, *summary.forgetting_measures[:2]] if arms
    ]
    return [panel for panel in panels if panel is not None]


def _panel(summary: Summary, name: str, arms: list[ArmRow]) -> Panel | None:
    import altair

    task, found = summary.task(name), {group.arm: group for group in final_groups(summary)}
    rows = []
    for arm in arms:
        group = found.get(arm.name)
        row = series.score_row(group, name, task) if group else None
        if row is None:
            continue
        rank = setting(arm, "rank")
        place = {"series": targets(arm), "x": rank, "x_text": f"{rank:g}"}
        rows.append({**place, "alpha": f"{setting(arm, 'alpha'):g}", **row})
    if not rows:
        return None
    x = series.listed_axis("x", "rank (log scale)", [row["x"] for row in rows], log=True)
    y = altair.Y("y:Q", title=style.value_title(task), scale=altair.Scale(zero=False, padding=14))
    names = list(dict.fromkeys(targets(arm) for arm in arms))
    layers = [
        *style.base_layers(summary, name),
        *series.lines(rows, names, x, y, tooltips=TOOLTIPS),
    ]
    subtitle = f"{style.direction(task).capitalize()}. Bars: ± 1 standard error."
    return Panel(
        name,
        style.titled(layers, f"{task.short_title} by rank and modules", subtitle),
        f"{task.title} against the rank of LoRA, one line a choice of modules.",
    )


CHART = Chart(
    name="ranks",
    title="Modules and rank",
    explanation=(
        "Arms of LoRA at their best rates and largest budgets, by rank and by the modules that "
        "are adapted. In the paper more rank moves along the trade-off: it learns more and "
        "forgets more (figure 7 of Biderman et al. 2024)."
    ),
    draw=draw,
)
