"""What was forgotten on x, learnt on y: one line an arm, a marker a budget, the base at zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from laura.report import formats
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.groups import Group, groups, selected_groups
from laura.report.study import Study
from laura.results.schema import MEAN, PointRow, Summary, TaskFacts

if TYPE_CHECKING:
    import altair

BASE_TEXT = "base"
TOOLTIPS = {
    "arm": "arm",
    "learning": "learning",
    "learning_change": "against the base",
    "forgetting": "source",
    "forgetting_change": "against the base ",
    "rate": "learning rate",
    "seeds": "seeds",
    "budget_text": "budget",
    "tokens": "tokens",
    "run": "run",
    "n": "n",
}


def pairs(summary: Summary) -> list[tuple[str, str]]:
    """Pairs (learning, forgetting) that make sense beside each other.

    The leading task against the mean of the accuracies, loss against loss, and
    the leading task against KL.
    """
    if summary.primary is None:
        return []
    found = []
    if MEAN in summary.forgetting_measures:
        found.append((summary.primary, MEAN))
    if "source_loss" in summary.measure.forgetting:
        loss = "target_loss" if "target_loss" in summary.measure.learning else summary.primary
        found.append((loss, "source_loss"))
    found += [
        (summary.primary, name)
        for name in summary.forgetting_measures
        if name not in (MEAN, "source_loss")
    ]
    return found


def draw(study: Study) -> list[Panel]:
    """One panel for each pair that has at least one point."""
    panels = [_panel(study, learning, forgetting) for learning, forgetting in pairs(study.summary)]
    return [panel for panel in panels if panel is not None]


def _panel(study: Study, learning: str, forgetting: str) -> Panel | None:
    summary = study.summary
    up, right = summary.task(learning), summary.task(forgetting)
    means = _rows(selected_groups(summary), up, right)
    if not means:
        return None
    arms = style.coloured(summary)
    means, others = style.of_arms(means, arms)
    single = [_alone(summary, point) for point in summary.points if point.selected]
    seeds, _ = style.of_arms(_rows(single, up, right), arms)
    front = _front(study, up, right)
    layers = [
        *_origin_layers(),
        *_front_layers(front),
        *style.grey_lines(others, *_axes(up, right), TOOLTIPS),
        *_bar_layers(summary, means),
        *_seed_layers(summary, seeds if len(seeds) > len(means) else []),
        *_mean_layers(summary, means, up, right),
        *_word_layers(),
        *_front_names(front),
    ]
    title = f"{up.short_title} against {_inside_a_title(right.short_title)}"
    lines = ["Better is up and right; markers grow with budget.", "Bars: ± 1 standard error."]
    if front:
        lines.append("Dotted, with rings: Pareto front (arm, rate, budget).")
    description = (
        f"Scatter of what was learnt ({up.title}) against what was forgotten ({right.title}) "
        f"for {len(summary.arms)} arms."
    )
    if front:
        named = "; ".join(row["front_label"] for row in front)
        description += f" Pareto front: {named}."
    return Panel(f"{learning}-{forgetting}", style.titled(layers, title, *lines), description)


def _front(study: Study, up: TaskFacts, right: TaskFacts) -> list[style.Row]:
    """Rows of what none beats in both, where this is the pair that was analysed.

    Each is the mean over the seeds of one arm, rate and budget, and is named by these.
    """
    tradeoff = study.analysis.tradeoff
    if tradeoff is None or (tradeoff.learning, tradeoff.forgetting) != (up.name, right.name):
        return []
    wanted = {(one.arm, one.learning_rate, one.budget) for one in tradeoff.front}
    rows = []
    for group in groups(study.summary):
        if (group.arm, group.learning_rate, group.budget) in wanted:
            label = f"{group.arm} {group.rate} {formats.count(group.budget)}"
            rows += [{**row, "front_label": label} for row in _rows([group], up, right)]
    return rows


def _front_layers(rows: list[style.Row]) -> list[altair.Chart]:
    if not rows:
        return []
    import altair

    drawn = style.chart(rows)
    line = drawn.mark_line(strokeDash=[2, 3], strokeWidth=1.8, color=style.GREY)
    ring = drawn.mark_point(shape="circle", size=330, strokeWidth=1.6, color=style.GREY, opacity=1)
    return [
        line.encode(x="x:Q", y="y:Q", order=altair.Order("x:Q")),
        ring.encode(x="x:Q", y="y:Q", tooltip=style.tooltips(**TOOLTIPS)),
    ]


def _front_names(rows: list[style.Row]) -> list[altair.Chart]:
    """Names of the front's points: above and beyond them, where nothing else can lie.

    Near the right edge, where little was forgotten, they stand to the left.
    """
    edge = 0.75 * min(0.0, *(row["x"] for row in rows)) if rows else 0.0
    edge += 0.25 * max((row["x"] for row in rows), default=0.0)
    sides: dict[Literal["left", "right"], list[style.Row]] = {
        "left": [row for row in rows if row["x"] >= edge],
        "right": [row for row in rows if row["x"] < edge],
    }
    return [
        style.chart(own)
        .mark_text(align=align, dx=12 if align == "left" else -12, dy=-9, fontSize=10.5)
        .encode(x="x:Q", y="y:Q", text="front_label:N")
        for align, own in sides.items()
        if own
    ]


def _inside_a_title(words: str) -> str:
    """First letter small, unless the word is an abbreviation."""
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]


def _alone(summary: Summary, point: PointRow) -> Group:
    return Group(summary, point.arm, point.budget, (point,))


def _rows(found: list[Group], up: TaskFacts, right: TaskFacts) -> list[style.Row]:
    rows = []
    for group in found:
        moved = group.change(up.name), group.change(right.name)
        learnt, lost = formats.gained(moved[0], up), formats.lost(moved[1], right)
        if learnt is None or lost is None:
            continue
        score, kept_score = group.value(up.name), group.value(right.name)
        rows.append(
            {
                "arm": group.arm,
                **style.spread("y", learnt, up),
                **style.spread("x", lost, right),
                "learning": f"{up.title}: {formats.value(score, up, True)}",
                "learning_change": formats.moved_words(moved[0], up, learnt=True),
                "forgetting": f"{right.title}: {formats.value(kept_score, right, True)}",
                "forgetting_change": formats.moved_words(moved[1], right, learnt=False),
                "rate": group.rate,
                "seeds": formats.seeds(group.seeds),
                "budget": group.budget,
                "order": group.budget,
                "budget_label": formats.count(group.budget),
                "budget_text": formats.budget_of(group.summary, group.budget),
                "tokens": formats.count(group.tokens),
                "run": ", ".join(group.runs),
                "n": f"{learnt.n} {up.items}, {lost.n} {right.items}",
            }
        )
    return rows


def _axes(up: TaskFacts, right: TaskFacts) -> tuple[altair.X, altair.Y]:
    import altair

    axis = style.amount_axis()
    return (
        altair.X(
            "x:Q",
            title=style.moved_title("forgot", right),
            scale=style.forgotten_scale(),
            axis=axis,
        ),
        altair.Y(
            "y:Q", title=style.moved_title("learnt", up), scale=style.learnt_scale(), axis=axis
        ),
    )


def _origin_layers() -> list[altair.Chart]:
    here = style.chart([{"x": 0, "y": 0, "arm": BASE_TEXT}])
    line = here.mark_rule(color=style.GREY, strokeDash=[4, 3], strokeWidth=1, opacity=0.8)
    return [line.encode(x="x:Q"), line.encode(y="y:Q")]


def _word_layers() -> list[altair.Chart]:
    import altair

    here = style.chart([{"x": 0, "y": 0, "arm": BASE_TEXT}])
    corner = style.chart([{"text": "better: up and right"}])
    tip = style.tooltips(arm="model")
    return [
        here.mark_point(shape="diamond", filled=True, size=190, color=style.GREY, opacity=1).encode(
            x="x:Q", y="y:Q", tooltip=tip
        ),
        here.mark_text(text=BASE_TEXT, dx=-10, dy=12, align="right", fontSize=11.5).encode(
            x="x:Q", y="y:Q"
        ),
        corner.mark_text(align="right", baseline="top", dx=-4, dy=4, fontSize=11.5).encode(
            text="text:N", x=altair.value("width"), y=altair.value(0)
        ),
    ]


def _bar_layers(summary: Summary, rows: list[style.Row]) -> list[altair.Chart]:
    bars = style.chart(rows).mark_rule(strokeWidth=1.2, opacity=0.65)
    tint = style.color(summary)
    return [
        bars.encode(x="x_low:Q", x2="x_high:Q", y="y:Q", color=tint),
        bars.encode(x="x:Q", y="y_low:Q", y2="y_high:Q", color=tint),
    ]


def _seed_layers(summary: Summary, rows: list[style.Row]) -> list[altair.Chart]:
    if not rows:
        return []
    return [
        style.chart(rows)
        .mark_point(filled=True, size=22, opacity=0.4)
        .encode(
            x="x:Q",
            y="y:Q",
            color=style.color(summary),
            shape=style.shape(summary),
            tooltip=style.tooltips(**TOOLTIPS),
        )
    ]


def _size_legend(summary: Summary) -> altair.Legend:
    import altair

    return altair.Legend(
        title=f"budget ({summary.budget.unit})",
        orient="bottom",
        symbolFillColor=style.GREY,
        symbolStrokeColor=style.GREY,
        titleOrient="left",
        columns=4,
    )


def _mean_layers(
    summary: Summary, rows: list[style.Row], up: TaskFacts, right: TaskFacts
) -> list[altair.Chart]:
    import altair

    x, y = _axes(up, right)
    budgets = sorted({row["budget"] for row in rows})
    labels = [formats.count(budget) for budget in budgets]
    sizes = [60 + 200 * place / max(1, len(budgets) - 1) for place in range(len(budgets))]
    size = altair.Size(
        "budget_label:O",
        scale=altair.Scale(domain=labels, range=sizes),
        legend=_size_legend(summary) if len(budgets) > 1 else None,
    )
    line = style.chart(rows).mark_line(strokeWidth=2, opacity=0.8)
    point = style.chart(rows).mark_point(filled=True, opacity=1)
    return [
        line.encode(x=x, y=y, color=style.color(summary), order=altair.Order("order:Q")),
        point.encode(
            x=x,
            y=y,
            color=style.color(summary),
            shape=style.shape(summary),
            size=size,
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]


CHART = Chart(
    name="tradeoff",
    title="The trade-off: what was learnt, what was lost",
    explanation=(
        "Every marker is an arm at its best learning rate after one budget, beside the base, "
        "which is the grey diamond at zero. Up means more learnt, right means less "
        "forgotten; an arm that lies above and to the right of another is better in both. Bars "
        "are one standard error either way: a difference no longer than the bars may be chance. "
        "Small pale markers are single seeds. Rings are the Pareto front: means over the seeds of "
        "an arm at one rate and budget, among all rates, that none beats in both."
    ),
    draw=draw,
    note=style.colour_note,
)
