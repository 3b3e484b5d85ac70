"""Scores against tokens trained on, one line an arm, the base dashed."""

from __future__ import annotations

from laura.recipe.tasks import DRIFT
from laura.report import formats
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import selected_groups
from laura.report.study import Study
from laura.results.schema import Summary

TOOLTIPS = {
    "arm": "arm",
    "value": "score",
    "change": "change from base",
    "rate": "learning rate",
    "seeds": "seeds",
    "budget": "budget",
    "tokens_text": "tokens",
    "run": "run",
    "n": "n",
}


def draw(study: Study) -> list[Panel]:
    """One panel for each learning task and each measure of forgetting but the divergences."""
    summary = study.summary
    names = [*summary.measure.learning, *summary.forgetting_measures]
    return panels(summary, [name for name in names if name not in DRIFT])


def panels(summary: Summary, names: list[str], arms: list[str] | None = None) -> list[Panel]:
    """One panel a measure; none where a measure is missing.

    Args:
        summary: The study.
        names: Measures.
        arms: The only arms drawn, all of them in colours; None for every arm, in colours as
            far as these go.
    """
    found = [_panel(summary, name, arms) for name in names]
    return [panel for panel in found if panel is not None]


def _rows(summary: Summary, name: str, arms: list[str] | None) -> list[style.Row]:
    task = summary.task(name)
    rows = []
    for group in selected_groups(summary):
        score = group.value(name)
        if score is None or (arms is not None and group.arm not in arms):
            continue
        rows.append(
            {
                "arm": group.arm,
                "tokens": group.tokens,
                "order": group.tokens,
                **style.spread("y", score, task),
                "value": formats.value(score, task, True),
                "change": formats.change(group.change(name), task, True),
                "rate": group.rate,
                "seeds": formats.seeds(group.seeds),
                "budget": formats.budget_of(summary, group.budget),
                "tokens_text": formats.count(group.tokens),
                "run": ", ".join(group.runs),
                "n": f"{score.n} {task.items}",
            }
        )
    return rows


def _panel(summary: Summary, name: str, arms: list[str] | None) -> Panel | None:
    import altair

    task, rows = summary.task(name), _rows(summary, name, arms)
    if not rows:
        return None
    x = style.token_axis(max(row["tokens"] for row in rows))
    y = altair.Y("y:Q", title=style.value_title(task), scale=altair.Scale(zero=False, padding=10))
    rows, others = style.of_arms(rows, style.coloured(summary) if arms is None else arms)
    tint, drawn = style.color(summary, arms), style.chart(rows)
    layers = [
        *style.grey_lines(others, x, y, TOOLTIPS),
        *style.base_layers(summary, name),
        drawn.mark_line(strokeWidth=2, opacity=0.8).encode(x=x, y=y, color=tint),
        drawn.mark_rule(strokeWidth=1.2, opacity=0.65).encode(
            x=x, y="y_low:Q", y2="y_high:Q", color=tint
        ),
        drawn.mark_point(filled=True, opacity=1, size=70).encode(
            x=x,
            y=y,
            color=tint,
            shape=style.shape(summary, arms),
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]
    side = "learning" if name in summary.measure.learning else "forgetting"
    subtitle = f"{side.capitalize()}: {style.direction(task)}. Bars: ± 1 standard error."
    return Panel(
        name,
        style.titled(layers, task.title, subtitle),
        f"{task.title} against tokens trained on, one line an arm, the base dashed.",
    )


CHART = Chart(
    name="learning_curves",
    title="Scores against tokens",
    explanation=(
        "Every arm at its best learning rate, measured at each budget (mean over seeds). The "
        "dashed line is the base before training. A line that keeps moving has not settled at "
        "the largest budget."
    ),
    draw=draw,
    note=style.colour_note,
)
