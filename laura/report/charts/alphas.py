"""Score against learning rate, one line an alpha (Biderman et al. 2024, figure S3)."""

from __future__ import annotations

from laura.report import formats
from laura.report.arms import families, setting
from laura.report.charts import series, style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import groups
from laura.report.study import Study
from laura.results.schema import ArmRow, Summary

TOOLTIPS = {
    "series": "alpha",
    "arm": "arm",
    "x_text": "learning rate",
    "value": "score",
    "budget": "budget",
    "seeds": "seeds",
    "n": "n",
}


def draw(study: Study) -> list[Panel]:
    """A panel for each family of arms that differ in alpha alone."""
    summary = study.summary
    if summary.primary is None:
        return []
    panels = [
        _panel(summary, summary.primary, place, name, arms)
        for place, (name, arms) in enumerate(families(summary, "alpha").items())
    ]
    return [panel for panel in panels if panel is not None]


def _panel(
    summary: Summary, measure: str, place: int, family: str, arms: list[ArmRow]
) -> Panel | None:
    import altair

    task, alphas = summary.task(measure), {arm.name: setting(arm, "alpha") for arm in arms}
    last = {(group.arm, group.learning_rate): group for group in groups(summary)}
    rows = []
    for group in last.values():
        score = group.value(measure)
        if group.arm in alphas and score is not None:
            rows.append(
                {
                    "series": f"alpha {alphas[group.arm]:g}",
                    "arm": group.arm,
                    "x": group.learning_rate,
                    "x_text": formats.rate(group.learning_rate),
                    **style.spread("y", score, task),
                    "value": formats.value(score, task, True),
                    "budget": formats.budget_of(summary, group.budget),
                    "seeds": formats.seeds(group.seeds),
                    "n": f"{score.n} {task.items}",
                }
            )
    if not rows:
        return None
    rates = sorted({row["x"] for row in rows})
    x = altair.X(
        "x:Q",
        title="peak learning rate (log scale)",
        scale=altair.Scale(type="log", domain=[rates[0] / 1.6, rates[-1] * 1.6], nice=False),
        axis=altair.Axis(values=rates, format="~e", labelOverlap=True),
    )
    y = altair.Y("y:Q", title=style.value_title(task), scale=altair.Scale(zero=False, padding=14))
    names = [f"alpha {alpha:g}" for alpha in sorted(set(alphas.values()))]
    layers = [
        *style.base_layers(summary, measure),
        *series.lines(rows, names, x, y, tooltips=TOOLTIPS),
    ]
    subtitle = f"{style.direction(task).capitalize()}. Bars: ± 1 standard error."
    return Panel(
        str(place),
        style.titled(layers, f"{task.short_title} by alpha: {family}", subtitle),
        f"{task.title} against learning rate, one line an alpha, for {family}.",
    )


CHART = Chart(
    name="alphas",
    title="Alpha",
    explanation=(
        "Arms that differ in alpha alone, at every rate. Alpha and rate act together: a larger "
        "alpha moves the best rate down, so alphas are compared at their own best rates."
    ),
    draw=draw,
)
