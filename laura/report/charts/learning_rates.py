"""Score against learning rate, one line an arm; the chosen rate ringed, diverged runs crossed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laura.recipe.tasks import DRIFT
from laura.report import formats
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import Group, groups
from laura.report.study import Study
from laura.results.schema import Summary, TaskFacts
from laura.results.task_result import VALIDATION

if TYPE_CHECKING:
    import altair

TOOLTIPS = {
    "arm": "arm",
    "rate_text": "learning rate",
    "value": "score",
    "change": "change from base",
    "chosen": "chosen",
    "seeds": "seeds",
    "budget": "budget",
    "run": "run",
    "n": "n",
}
LOST_TOOLTIPS = {
    "arm": "arm",
    "rate_text": "learning rate",
    "state": "state",
    "reason": "reason",
    "seeds": "seed",
    "run": "run",
}


def draw(study: Study) -> list[Panel]:
    """Panels for validation loss, the leading task, and the measures of forgetting but KL."""
    summary = study.summary
    names = [VALIDATION]
    names += [summary.primary] if summary.primary else []
    names += [name for name in summary.forgetting_measures if name not in DRIFT]
    panels = [_panel(summary, name) for name in names]
    return [panel for panel in panels if panel is not None]


def _last_groups(summary: Summary) -> list[Group]:
    """Every arm and rate at the largest budget that rate reached."""
    return list({(group.arm, group.learning_rate): group for group in groups(summary)}.values())


def _rows(summary: Summary, task: TaskFacts) -> list[style.Row]:
    rows = []
    for group in _last_groups(summary):
        score = group.value(task.name)
        if score is None:
            continue
        chosen = sum(point.selected for point in group.points)
        rows.append(
            {
                "arm": group.arm,
                "rate": group.learning_rate,
                "order": group.learning_rate,
                "rate_text": formats.rate(group.learning_rate),
                **style.spread("y", score, task),
                "value": formats.value(score, task, True),
                "change": formats.change(group.change(task.name), task, True),
                "chosen": f"with {chosen} of {len(group.points)} seeds" if chosen else "no",
                "seeds": formats.seeds(group.seeds),
                "budget": formats.budget_of(summary, group.budget),
                "run": ", ".join(group.runs),
                "n": f"{score.n} {task.items}" if score.n else formats.ABSENT,
            }
        )
    return rows


def _lost_rows(summary: Summary) -> list[style.Row]:
    return [
        {
            "arm": run.arm,
            "rate": run.learning_rate,
            "rate_text": formats.rate(run.learning_rate),
            "state": run.state,
            "reason": run.reason or formats.ABSENT,
            "seeds": str(run.seed),
            "run": run.id,
        }
        for run in summary.runs
        if run.state in ("diverged", "failed")
    ]


def _rate_axis(summary: Summary) -> altair.X:
    import altair

    rates = sorted({rate for arm in summary.arms for rate in arm.rates})
    rates = rates or sorted({run.learning_rate for run in summary.runs})
    return altair.X(
        "rate:Q",
        title="peak learning rate (log scale)",
        scale=altair.Scale(type="log", domain=[rates[0] / 1.6, rates[-1] * 1.6], nice=False),
        axis=altair.Axis(values=rates, format="~e", labelOverlap=True),
    )


def _panel(summary: Summary, name: str) -> Panel | None:
    import altair

    task = summary.task(name)
    rows = _rows(summary, task)
    if not rows:
        return None
    x = _rate_axis(summary)
    y = altair.Y("y:Q", title=style.value_title(task), scale=altair.Scale(zero=False, padding=14))
    rows, others = style.of_arms(rows, style.coloured(summary))
    tint, drawn = style.color(summary), style.chart(rows)
    chosen = style.chart([row for row in rows if row["chosen"] != "no"])
    layers = [
        *style.grey_lines(others, x, y, TOOLTIPS),
        *style.base_layers(summary, name),
        drawn.mark_line(strokeWidth=2, opacity=0.8).encode(x=x, y=y, color=tint),
        drawn.mark_rule(strokeWidth=1.2, opacity=0.65).encode(
            x=x, y="y_low:Q", y2="y_high:Q", color=tint
        ),
        chosen.mark_point(size=260, strokeWidth=2, opacity=0.9, shape="circle").encode(
            x=x, y=y, color=tint
        ),
        drawn.mark_point(filled=True, opacity=1, size=70).encode(
            x=x,
            y=y,
            color=tint,
            shape=style.shape(summary),
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]
    lost = _lost_rows(summary)
    layers += _cross_layers(summary, lost, x)
    lines = [f"{style.direction(task).capitalize()}. Ring: chosen rate. Bars: ± 1 standard error."]
    if lost:
        lines.append("× at the lower edge: a run at this rate diverged or failed.")
    return Panel(
        name,
        style.titled(layers, f"{task.short_title} by learning rate", *lines),
        f"{task.title} against learning rate on a logarithmic axis, one line an arm.",
    )


def _cross_layers(summary: Summary, lost: list[style.Row], x: altair.X) -> list[altair.Chart]:
    """Crosses at the lower edge, in the arm's colour or in grey."""
    import altair

    layers = []
    coloured, grey = style.of_arms(lost, style.coloured(summary))
    for rows, tint in ((grey, altair.value(style.GREY)), (coloured, style.color(summary))):
        if rows:
            cross = style.chart(rows).mark_point(
                shape=style.CROSS, size=110, strokeWidth=2.5, opacity=1, yOffset=-9
            )
            tip = style.tooltips(**LOST_TOOLTIPS)
            layers.append(cross.encode(x=x, y=altair.value("height"), color=tint, tooltip=tip))
    return layers


CHART = Chart(
    name="learning_rates",
    title="Scores against learning rate",
    explanation=(
        "Every learning rate tried, at the largest budget it was measured at. For each seed the "
        "rate with the lowest validation loss, or the one that a search found best by its own "
        "objective, is chosen; rates chosen with any seed are ringed. A ring at the "
        "end of its line means that the best rate may lie outside the range tried. Arms are "
        "compared at their own best rates, never at a shared one."
    ),
    draw=draw,
    note=style.colour_note,
)
