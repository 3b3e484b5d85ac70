"""Change of every forgetting task, one row a task, one point an arm."""

from __future__ import annotations

from laura.report import formats
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import final_groups
from laura.report.study import Study
from laura.results.schema import MEAN, Summary, TaskFacts

TOOLTIPS = {
    "arm": "arm",
    "task": "task",
    "change": "against the base",
    "value": "score",
    "base": "base",
    "rate": "learning rate",
    "seeds": "seeds",
    "budget": "budget",
    "run": "run",
    "n": "n",
}


def draw(study: Study) -> list[Panel]:
    """One panel for the accuracies with their mean, one for losses and KL, one for each other."""
    summary = study.summary
    accuracies = [*summary.accuracies, MEAN] if summary.accuracies else []
    others = [name for name in summary.forgetting_measures if name != MEAN]
    # Only what has one unit and one direction can share an axis.
    losses = [name for name in others if summary.task(name).unit == "nats per token"]
    panels = [
        _panel(summary, "accuracies", "Benchmarks", accuracies),
        _panel(summary, "losses", "Losses and KL", losses),
    ]
    for name in others:
        if name not in losses:
            panels.append(_panel(summary, f"of-{name}", summary.task(name).short_title, [name]))
    return [panel for panel in panels if panel is not None]


def _rows(summary: Summary, tasks: list[TaskFacts]) -> list[style.Row]:
    rows = []
    for task in tasks:
        for group in final_groups(summary):
            change = group.change(task.name)
            lost = formats.lost(change, task)
            if change is None or lost is None:
                continue
            rows.append(
                {
                    "arm": group.arm,
                    "task": _label(task),
                    **style.spread("x", lost, task),
                    "change": formats.moved_words(change, task, learnt=False),
                    "value": formats.value(group.value(task.name), task, True),
                    "base": formats.value(summary.base.scores.get(task.name), task, True),
                    "rate": group.rate,
                    "seeds": formats.seeds(group.seeds),
                    "budget": formats.budget_of(summary, group.budget),
                    "run": ", ".join(group.runs),
                    "n": f"{change.n} {task.items}",
                }
            )
    return rows


def _label(task: TaskFacts) -> str:
    return "Mean of these" if task.name == MEAN else task.short_title


def _panel(summary: Summary, name: str, title: str, names: list[str]) -> Panel | None:
    import altair

    tasks = [summary.task(part) for part in names]
    rows = _rows(summary, tasks)
    if not rows:
        return None
    first = tasks[0]
    labels = [_label(task) for task in tasks]
    arms = [arm.name for arm in summary.arms]
    x = altair.X(
        "x:Q",
        title=f"forgot ({formats.change_unit(first)}); right is better",
        scale=style.forgotten_scale(),
        axis=style.amount_axis(),
    )
    y = altair.Y(
        "task:N",
        title=None,
        scale=altair.Scale(domain=labels, paddingInner=0.35, paddingOuter=0.2),
        axis=altair.Axis(labelLimit=150, grid=False, domain=False, ticks=False),
    )
    offset = altair.YOffset("arm:N", scale=altair.Scale(domain=arms))
    tint, drawn = style.color(summary, arms), style.chart(rows)
    zero = style.chart([{"x": 0}]).mark_rule(color=style.GREY, strokeDash=[4, 3])
    layers = [
        zero.encode(x="x:Q"),
        drawn.mark_rule(strokeWidth=2, opacity=0.7).encode(
            x="x_low:Q", x2="x_high:Q", y=y, yOffset=offset, color=tint
        ),
        drawn.mark_point(filled=True, opacity=1, size=85).encode(
            x=x,
            y=y,
            yOffset=offset,
            color=tint,
            shape=style.shape(summary, arms),
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]
    counted = ", ".join(f"{_label(task)} {task.n}" for task in tasks if task.n)
    subtitle = ["Dashed: base. Bars: ± 1 standard error.", f"n: {counted}"]
    height = max(140, len(labels) * (22 + 16 * max(1, len(arms))))
    return Panel(
        name,
        style.titled(layers, f"Forgetting: {title}", *subtitle),
        f"Change of {', '.join(labels)} from the base, one point an arm.",
        height,
    )


CHART = Chart(
    name="forgetting_by_task",
    title="Forgetting, task by task",
    explanation=(
        "Every arm at its best learning rate and largest budget. Left of the dashed line, which "
        "is the base, something was lost. A mean can hide that one task fell while another rose."
    ),
    draw=draw,
)
