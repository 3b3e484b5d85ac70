"""What was learnt beside what was forgotten: the trade-off, and forgetting task by task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import altair

from laura.report import formats
from laura.report.arms import Group, final_groups, groups
from laura.report.charts import style
from laura.report.charts.style import GREY, ChartPanel, Row, chart_of
from laura.report.study import Study
from laura.results.schema import MEAN, Summary, TaskFacts


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
    others = [name for name in summary.forgetting_measures if name not in (MEAN, "source_loss")]
    return found + [(summary.primary, name) for name in others]


@chart_of("The trade-off: what was learnt, what was lost", style.colour_note)
def tradeoff(study: Study) -> list[ChartPanel]:
    """Every marker is an arm at its best learning rate after one budget, beside the base, which is
    the grey diamond at zero. Up means more learnt, right means less forgotten; an arm that lies
    above and to the right of another is better in both. Bars are one standard error either way:
    a difference no longer than the bars may be chance. Small pale markers are single seeds.
    Rings are the Pareto front: means over the seeds of an arm at one rate and budget, among all
    rates, that none beats in both.
    """
    # One line an arm, a marker a budget, the base at zero; a panel a pair with some point.
    summary, panels = study.summary, []
    singles = [
        Group(summary, one.arm, one.budget, (one,)) for one in summary.points if one.selected
    ]
    for learning, forgetting in pairs(summary):
        up, right = summary.task(learning), summary.task(forgetting)
        means = _rows(groups(summary, selected=True), up, right)
        if means:
            front = _front(study, up, right)
            layers = _layers(summary, means, _rows(singles, up, right), front, up, right)
            # First letter small, unless the word is an abbreviation.
            word = right.short_title
            word = word if word[1:2].isupper() else word[:1].lower() + word[1:]
            told = ["Better is up and right; markers grow with budget.", style.BARS]
            if front:
                told.append("Dotted, with rings: Pareto front (arm, rate, budget).")
            if left_out := len(front) - len(_apart(front)):
                told.append(f"{left_out} more names would lie over these; the table has all.")
            drawing = style.titled(layers, f"{up.short_title} against {word}", *told)
            words = (
                f"Scatter of what was learnt ({up.title}) against what was forgotten "
                f"({right.title}) for {len(summary.arms)} arms."
            )
            if front:
                words += f" Pareto front: {'; '.join(row['front_label'] for row in front)}."
            panels.append(ChartPanel(f"{learning}-{forgetting}", drawing, words))
    return panels


def _rows(found: Iterable[Group], up: TaskFacts, right: TaskFacts) -> list[Row]:
    rows = []
    for group in found:
        learnt = formats.turned(group.change(up.name), up, learnt=True)
        lost = formats.turned(group.change(right.name), right, learnt=False)
        if learnt is None or lost is None:
            continue
        told = {"size": formats.count(group.budget)}
        place = style.spread("y", learnt, up.scale) | style.spread("x", lost, right.scale)
        rows.append({**group.facts, **place, "order": group.budget, **told})
    return rows


def _front(study: Study, up: TaskFacts, right: TaskFacts) -> list[Row]:
    """Rows of what none beats in both, where this is the pair that was analysed.

    Each is the mean over the seeds of one arm, rate and budget, and is named by these.
    """
    found = study.analysis.tradeoff
    if found is None or (found.learning, found.forgetting) != (up.name, right.name):
        return []
    wanted = {(one.arm, one.learning_rate, one.budget) for one in found.front}
    return [
        {**row, "front_label": f"{group.arm} {group.rate} {formats.count(group.budget)}"}
        for group in groups(study.summary)
        if (group.arm, group.learning_rate, group.budget) in wanted
        for row in _rows([group], up, right)
    ]


def _layers(
    summary: Summary,
    means: list[Row],
    singles: list[Row],
    front: list[Row],
    up: TaskFacts,
    right: TaskFacts,
) -> list[altair.Chart]:
    x = style.forgotten_axis(style.moved_title(right, learnt=False))
    y = style.learnt_axis(style.moved_title(up, learnt=True))
    arms = style.coloured(summary)
    color, shape = style.arms_apart(summary)
    means, others = style.of_arms(means, arms)
    singles, _ = style.of_arms(singles, arms)
    drawn = style.chart(means)
    bars = drawn.mark_rule(strokeWidth=1.2, opacity=0.65)
    line = drawn.mark_line(strokeWidth=2, opacity=0.8)
    layers = [
        *_origin(),
        *_front_layers(front),
        *style.grey_lines(others, x, y, order="order"),
        bars.encode(x="x_low:Q", x2="x_high:Q", y="y:Q", color=color),
        bars.encode(x="x:Q", y="y_low:Q", y2="y_high:Q", color=color),
    ]
    if len(singles) > len(means):
        small = style.chart(singles).mark_point(filled=True, size=22, opacity=0.4)
        layers.append(small.encode(x="x:Q", y="y:Q", color=color, shape=shape))
    points = drawn.mark_point(filled=True, opacity=1)
    size = _size(summary, means)
    return [
        *layers,
        line.encode(x=x, y=y, color=color, order=altair.Order("order:Q")),
        points.encode(x=x, y=y, color=color, shape=shape, size=size),
        *_words(),
        *_front_names(front),
    ]


def _size(summary: Summary, rows: list[Row]) -> altair.Size:
    """Markers grow with the budget."""
    budgets = dict(sorted((row["order"], row["size"]) for row in rows))
    sizes = [60 + 200 * place / max(1, len(budgets) - 1) for place in range(len(budgets))]
    legend = altair.Legend(
        title=f"budget ({summary.budget.unit})", orient="bottom", titleOrient="left", columns=4,
        symbolFillColor=GREY, symbolStrokeColor=GREY,
    )  # fmt: skip
    scale = altair.Scale(domain=list(budgets.values()), range=sizes)
    return altair.Size("size:O", scale=scale, legend=legend if len(budgets) > 1 else None)


_HERE = [{"x": 0, "y": 0, "arm": "base"}]


def _origin() -> list[altair.Chart]:
    line = style.chart(_HERE).mark_rule(color=GREY, strokeDash=[4, 3], strokeWidth=1, opacity=0.8)
    return [line.encode(x="x:Q"), line.encode(y="y:Q")]


def _words() -> list[altair.Chart]:
    """The base's diamond with its name, and which way is better."""
    here, corner = style.chart(_HERE), style.chart([{"text": "better: up and right"}])
    base = here.mark_point(shape="diamond", filled=True, size=190, color=GREY, opacity=1)
    name = here.mark_text(text="base", dx=-10, dy=12, align="right", fontSize=11.5)
    word = corner.mark_text(align="right", baseline="top", dx=-4, dy=4, fontSize=11.5)
    return [
        base.encode(x="x:Q", y="y:Q"),
        name.encode(x="x:Q", y="y:Q"),
        word.encode(text="text:N", x=altair.value("width"), y=altair.value(0)),
    ]


def _front_layers(rows: list[Row]) -> list[altair.Chart]:
    if not rows:
        return []
    drawn = style.chart(rows)
    line = drawn.mark_line(strokeDash=[2, 3], strokeWidth=1.8, color=GREY)
    ring = drawn.mark_point(shape="circle", size=330, strokeWidth=1.6, color=GREY, opacity=1)
    return [
        line.encode(x="x:Q", y="y:Q", order=altair.Order("x:Q")),
        ring.encode(x="x:Q", y="y:Q"),
    ]


def _front_names(rows: list[Row]) -> list[altair.Chart]:
    """Names of the front's points: above and beyond them, where nothing else can lie.

    Near the right edge, where little was forgotten, they stand to the left.
    """
    places, named = [row["x"] for row in rows], _apart(rows)
    edge = 0.75 * min([0.0, *places]) + 0.25 * max(places, default=0.0)
    sides: tuple[tuple[Literal["left", "right"], int, list[Row]], ...] = (
        ("left", 12, [row for row in named if row["x"] >= edge]),
        ("right", -12, [row for row in named if row["x"] < edge]),
    )
    return [
        style.chart(own)
        .mark_text(align=align, dx=dx, dy=-9, fontSize=10.5)
        .encode(x="x:Q", y="y:Q", text="front_label:N")
        for align, dx, own in sides
        if own
    ]


# Shares of the axes: a letter's width, a line's height.
_LETTER, _LINE = 0.015, 0.045


def _extent(rows: list[Row], axis: str) -> float:
    """How far the points reach, with the base, which is always on the axes."""
    places = [0.0, *(row[axis] for row in rows)]
    return float(max(places) - min(places))


def _apart(rows: list[Row]) -> list[Row]:
    """Points whose names do not lie over one another; those that learnt more go first."""
    wide, high = _extent(rows, "x"), _extent(rows, "y")
    named: list[Row] = []
    for row in sorted(rows, key=lambda row: -row["y"]):
        if not any(
            abs(row["x"] - other["x"]) < _LETTER * len(row["front_label"]) * wide
            and abs(row["y"] - other["y"]) < _LINE * high
            for other in named
        ):
            named.append(row)
    return named


# ----- task by task -----


@chart_of("Forgetting, task by task")
def forgetting_by_task(study: Study) -> list[ChartPanel]:
    """Every arm at its best learning rate and largest budget. Left of the dashed line, which is the
    base, something was lost. A mean can hide that one task fell while another rose.
    """
    # One panel for the accuracies with their mean, one for losses and KL, one for each other.
    summary = study.summary
    accuracies = [*summary.accuracies, MEAN] if summary.accuracies else []
    others = [name for name in summary.forgetting_measures if name != MEAN]
    # Only what has one unit and one direction can share an axis.
    losses = [name for name in others if summary.task(name).unit == "nats per token"]
    wanted = [("accuracies", "Benchmarks", accuracies), ("losses", "Losses and KL", losses)]
    wanted += [
        (f"of-{name}", summary.task(name).short_title, [name])
        for name in others
        if name not in losses
    ]
    panels = [
        _by_task(summary, name, title, [summary.task(own) for own in names])
        for name, title, names in wanted
    ]
    return [panel for panel in panels if panel is not None]


def _label(task: TaskFacts) -> str:
    return "Mean of these" if task.name == MEAN else task.short_title


def _by_task(summary: Summary, name: str, title: str, tasks: list[TaskFacts]) -> ChartPanel | None:
    rows = []
    for task in tasks:
        for group in final_groups(summary).values():
            lost = formats.turned(group.change(task.name), task, learnt=False)
            if lost is not None:
                place = style.spread("x", lost, task.scale)
                rows.append({**group.facts, **place, "task": _label(task)})
    if not rows:
        return None
    labels, arms = [_label(task) for task in tasks], [arm.name for arm in summary.arms]
    x = style.forgotten_axis(f"forgot ({formats.change_unit(tasks[0])}); right is better")
    y = style.rows_axis("task", labels, 0.35)
    offset = altair.YOffset("arm:N", scale=altair.Scale(domain=arms))
    zero = style.chart([{"x": 0}]).mark_rule(color=GREY, strokeDash=[4, 3])
    apart = style.arms_apart(summary, arms)
    layers = [zero.encode(x="x:Q"), *style.dots(rows, x, y, offset, *apart)]
    counted = ", ".join(f"{_label(task)} {task.n}" for task in tasks if task.n)
    below = (f"Dashed: base. {style.BARS}", f"n: {counted}")
    return ChartPanel(
        name,
        style.titled(layers, f"Forgetting: {title}", *below),
        f"Change of {', '.join(labels)} from the base, one point an arm.",
        max(140, len(labels) * (22 + 16 * max(1, len(arms)))),
    )
