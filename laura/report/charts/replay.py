"""Learning and forgetting against the share of replayed tokens, one line a family of arms."""

from __future__ import annotations

from laura.report.arms import families, setting
from laura.report.charts import series, style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import final_groups
from laura.report.study import Study

TOOLTIPS = {
    "series": "arms",
    "arm": "arm",
    "x_text": "replay",
    "value": "score",
    "change": "change from base",
    "rate": "learning rate",
    "seeds": "seeds",
    "n": "n",
}


def draw(study: Study) -> list[Panel]:
    """Panels for the leading task and every measure of forgetting."""
    summary = study.summary
    names = [summary.primary] if summary.primary else []
    panels = [_panel(study, name) for name in [*names, *summary.forgetting_measures]]
    return [panel for panel in panels if panel is not None]


def _panel(study: Study, name: str) -> Panel | None:
    import altair

    summary, task = study.summary, study.summary.task(name)
    found = {group.arm: group for group in final_groups(summary)}
    rows, named = [], families(summary, "replay")
    for family, arms in named.items():
        for arm in arms:
            group = found.get(arm.name)
            row = series.score_row(group, name, task) if group else None
            if row is None:
                continue
            share = setting(arm, "replay")
            place = {"series": family, "x": share, "x_text": f"{100 * share:g} % of tokens"}
            rows.append({**place, **row})
    if not rows:
        return None
    x = series.listed_axis(
        "x", "share of replayed tokens", [row["x"] for row in rows], log=False, share=True
    )
    y = altair.Y("y:Q", title=style.value_title(task), scale=altair.Scale(zero=False, padding=14))
    layers = [
        *style.base_layers(summary, name),
        *series.lines(rows, list(named), x, y, tooltips=TOOLTIPS),
    ]
    side = "Learning" if name in summary.measure.learning else "Forgetting"
    subtitle = f"{side}: {style.direction(task)}. Bars: ± 1 standard error."
    return Panel(
        name,
        style.titled(layers, f"{task.short_title} by replay", subtitle),
        f"{task.title} against the share of replayed tokens, one line a family of arms.",
    )


CHART = Chart(
    name="replay",
    title="Replay: learning and forgetting against its share",
    explanation=(
        "Arms that differ in `replay` alone, at their best rates and largest budgets. Replay "
        "mixes source data among the target's; what it costs in learning stands beside what it "
        "saves of the source scores."
    ),
    draw=draw,
)
