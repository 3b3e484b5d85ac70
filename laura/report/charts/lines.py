"""Charts that are lines over something: one way to draw them, and a table of what they show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import altair

from laura.recipe.tasks import DRIFT
from laura.report.arms import (
    Group,
    adapted,
    families,
    final_groups,
    groups,
    regularised,
    setting,
    who_is_drawn,
)
from laura.report.charts import style
from laura.report.charts.style import ChartPanel, Row, chart_of
from laura.report.study import Study
from laura.results.schema import RunRow, Summary, TaskFacts
from laura.results.task_result import VALIDATION

# A study of a hundred runs must not make a page of a hundred megabytes.
POINTS_OF_A_CURVE = 150
LOST_STATES = ("diverged", "failed")


def score_rows(groups: Iterable[Group], name: str, x: Callable[[Group], Row]) -> list[Row]:
    """A marker a group that has the measure; `x` says where it lies."""
    rows = []
    for group in groups:
        task, score = group.summary.task(name), group.value(name)
        if score is not None:
            rows.append({**group.facts, **x(group), **style.spread("y", score, task.scale)})
    return rows


def score_panel(
    summary: Summary,
    name: str,
    rows: list[Row],
    x: altair.X,
    words: tuple[str, str],
    *,
    arms: Collection[str] | None = None,
    series: Collection[str] | None = None,
    subtitle: Sequence[str] = (),
    padding: int = 14,
    ring: list[Row] | None = None,
    above: Sequence[altair.Chart] = (),
) -> ChartPanel:
    """Lines with error bars over an axis, the base dashed.

    Args:
        summary: The study.
        name: The measure.
        rows: From `score_rows`, at least one.
        x: The axis.
        words: End of the title (empty for the task's whole title) and of the description.
        arms: The only arms drawn, all of them in colours; None for every arm, in colours as
            far as these go.
        series: What lines stand for instead of arms, in the order of the legend.
        subtitle: Empty for the side and the direction of the measure.
        padding: Above and below the lines, in pixels.
        ring: Rows that are ringed.
        above: Further layers.
    """
    task, y = summary.task(name), style.value_axis(summary.task(name), padding)
    others: list[Row] = []
    color, shape = style.series_apart(series or ())
    if series is None:
        rows, others = style.of_arms(rows, style.coloured(summary) if arms is None else arms)
        color, shape = style.arms_apart(summary, arms)
    between = []
    if ring is not None:
        circle = style.chart(ring).mark_point(size=260, strokeWidth=2, opacity=0.9, shape="circle")
        between.append(circle.encode(x=x, y=y, color=color))
    layers = [
        *style.grey_lines(others, x, y),
        *style.base_layers(summary, name),
        *style.lines(rows, x, y, color, shape, between),
        *above,
    ]
    side = "Learning" if name in summary.measure.learning else "Forgetting"
    below = subtitle or [f"{side}: {_better(task)}. {style.BARS}"]
    title = f"{task.short_title} by {words[0]}" if words[0] else task.title
    return ChartPanel(
        name, style.titled(layers, title, *below), f"{task.title} against {words[1]}."
    )


def _better(task: TaskFacts) -> str:
    """Which way is good, in words."""
    return "higher is better" if task.higher_is_better else "lower is better"


def leading(summary: Summary, forgetting: int | None = 2) -> list[str]:
    """The leading learning task and the leading measures of forgetting."""
    return [*summary.measure.learning[:1], *summary.forgetting_measures[:forgetting]]


# ----- over tokens -----


def over_tokens(
    summary: Summary, names: Iterable[str], arms: Collection[str] | None = None
) -> list[ChartPanel]:
    """Every arm, or these, at its best rate against tokens; a panel a measure."""
    found = [g for g in groups(summary, selected=True) if arms is None or g.arm in arms]
    words = ("", "tokens trained on, one line an arm, the base dashed")
    panels = []
    for name in names:
        rows = score_rows(found, name, lambda g: {"x": g.tokens})
        if rows:
            x = style.token_axis(max(row["x"] for row in rows))
            panels.append(score_panel(summary, name, rows, x, words, arms=arms, padding=10))
    return panels


@chart_of("Scores against tokens", style.colour_note)
def learning_curves(study: Study) -> list[ChartPanel]:
    """Every arm at its best learning rate, measured at each budget (mean over seeds). The dashed
    line is the base before training. A line that keeps moving has not settled at the largest
    budget.
    """
    # One panel for each learning task and each measure of forgetting but the divergences.
    names = [*study.summary.measure.learning, *study.summary.forgetting_measures]
    return over_tokens(study.summary, [name for name in names if name not in DRIFT])


@chart_of("Divergence from the base", style.colour_note)
def drift(study: Study) -> list[ChartPanel]:
    """How far each arm's predictions have moved from the base's, at its best rate after each budget
    (mean over seeds): KL(base || tuned) is large where the base's likely words have become
    unlikely, KL(tuned || base) where new ones have become likely. On target inputs some of it is
    what was to be learnt; on source text all of it is drift. The base is at 0.
    """
    # One panel for each divergence that was measured: forward and reverse, target and source.
    measured = {*study.summary.measure.learning, *study.summary.measure.forgetting}
    return over_tokens(study.summary, [name for name in DRIFT if name in measured])


@chart_of("Regularisers: learning and forgetting against budget")
def regularisers(study: Study) -> list[ChartPanel]:
    """Full finetuning alone, with weight decay, dropout or decay toward the base (L2-SP), beside
    the plainest arms of LoRA by rank (figure 4 of Biderman et al. 2024). A regulariser is worth
    its price where it keeps the source scores up without pulling the target score down.
    """
    # Full finetuning held back in several ways, and LoRA; the leading measures.
    arms = regularised(study.summary)
    return over_tokens(study.summary, leading(study.summary), arms) if arms else []


# ----- over learning rates -----


@chart_of("Scores against learning rate", style.colour_note)
def learning_rates(study: Study) -> list[ChartPanel]:
    """Every learning rate tried, at the largest budget it was measured at. For each seed the rate
    with the lowest validation loss, or the one that a search found best by its own objective, is
    chosen; rates chosen with any seed are ringed. A ring at the end of its line means that the
    best rate may lie outside the range tried. Arms are compared at their own best rates, never
    at a shared one.
    """
    # Every arm and rate at the largest budget that rate reached; chosen rates are ringed. Panels
    # for validation loss, the leading task, and the measures of forgetting but KL.
    summary = study.summary
    last = {(group.arm, group.learning_rate): group for group in groups(summary)}.values()
    rates = {rate for arm in summary.arms for rate in arm.rates}
    rates = rates or {run.learning_rate for run in summary.runs}
    words = ("learning rate", "learning rate on a logarithmic axis, one line an arm")
    panels = []
    for name in [VALIDATION, *(name for name in leading(summary, None) if name not in DRIFT)]:
        rows = score_rows(last, name, _rate)
        if rows:
            x, coloured = _rate_axis(rates), style.coloured(summary)
            crosses = _crosses(summary, x)
            better = _better(summary.task(name)).capitalize()
            told = [f"{better}. Ring: chosen rate. {style.BARS}"]
            if crosses:
                told.append("× at the lower edge: a run at this rate diverged or failed.")
            ring = [row for row in rows if row["chosen"] and row["arm"] in coloured]
            panels.append(
                score_panel(summary, name, rows, x, words,
                            subtitle=told, ring=ring, above=crosses)
            )  # fmt: skip
    return panels


def _rate(group: Group) -> Row:
    return {"x": group.learning_rate, "chosen": any(point.selected for point in group.points)}


def _rate_axis(rates: set[float]) -> altair.X:
    scale = altair.Scale(type="log", domain=[min(rates) / 1.6, max(rates) * 1.6], nice=False)
    axis = altair.Axis(values=sorted(rates), format="~e", labelOverlap=True)
    return altair.X("x:Q", title="peak learning rate (log scale)", scale=scale, axis=axis)


def _crosses(summary: Summary, x: altair.X) -> list[altair.Chart]:
    """Runs that were lost as crosses at the lower edge, in the arm's colour or in grey."""
    lost = [
        {"arm": run.arm, "x": run.learning_rate} for run in summary.runs if run.state in LOST_STATES
    ]
    coloured, grey = style.of_arms(lost, style.coloured(summary))
    sides = ((grey, altair.value(style.GREY)), (coloured, style.arms_apart(summary)[0]))
    return [
        style.chart(rows)
        .mark_point(**style.CROSS, yOffset=-9)
        .encode(x=x, y=altair.value("height"), color=tint)
        for rows, tint in sides
        if rows
    ]


# ----- over a setting of the arms, at their best rates and largest budgets -----


@chart_of("Modules and rank")
def ranks(study: Study) -> list[ChartPanel]:
    """Arms of LoRA at their best rates and largest budgets, by rank and by the modules that are
    adapted. In the paper more rank moves along the trade-off: it learns more and forgets more
    (figure 7 of Biderman et al. 2024).
    """
    # LoRA's leading measures over its rank, one line a choice of modules.
    summary, series = study.summary, adapted(study.summary)
    arms = {arm.name: arm for arm in summary.arms}
    found = [group for name, group in final_groups(summary).items() if name in series]
    words = ("rank and modules", "the rank of LoRA, one line a choice of modules")

    def place(group: Group) -> Row:
        return {"series": series[group.arm], "x": setting(arms[group.arm], "rank")}

    return [
        score_panel(
            summary, name, rows, style.listed_axis("rank (log scale)", [r["x"] for r in rows]),
            words, series=dict.fromkeys(series.values()),
            subtitle=[f"{_better(summary.task(name)).capitalize()}. {style.BARS}"],
        )
        for name in leading(summary)
        if (rows := score_rows(found, name, place))
    ]  # fmt: skip


@chart_of("Replay: learning and forgetting against its share")
def replay(study: Study) -> list[ChartPanel]:
    """Arms that differ in `replay` alone, at their best rates and largest budgets. Replay mixes
    source data among the target's; what it costs in learning stands beside what it saves of the
    source scores.
    """
    # The leading task and every measure of forgetting over the share of replayed tokens.
    summary, named = study.summary, families(study.summary, "replay")
    of_arm = {arm.name: (family, arm) for family, arms in named.items() for arm in arms}
    found = [group for name, group in final_groups(summary).items() if name in of_arm]
    words = ("replay", "the share of replayed tokens, one line a family of arms")

    def place(group: Group) -> Row:
        family, arm = of_arm[group.arm]
        return {"series": family, "x": setting(arm, "replay")}

    return [
        score_panel(
            summary, name, rows,
            style.listed_axis("share of replayed tokens", [r["x"] for r in rows], "%"),
            words, series=named,
        )
        for name in leading(summary, None)
        if (rows := score_rows(found, name, place))
    ]  # fmt: skip


# ----- training loss -----


def _losses_note(study: Study) -> str:
    every = [arm.name for arm in study.summary.arms]
    return who_is_drawn(style.coloured(study.summary), every, "The table above has the runs of")


@chart_of("Training loss", _losses_note)
def loss_curves(study: Study) -> list[ChartPanel]:
    """The loss the optimiser saw, step by step, for every arm, rate and seed at its largest budget.
    A smooth fall is healthy; spikes or a rise mean that the learning rate is too high. Low
    training loss alone says nothing about forgetting.
    """
    # One panel with every rate and seed that wrote a loss, of the arms that have a colour.
    summary = study.summary
    arms = style.coloured(summary)
    # Of every arm, rate and seed the run with the largest budget; shorter ones only cover it.
    by_budget = sorted(summary.runs, key=lambda run: run.budget or 0.0)
    runs = list({
        (run.arm, run.learning_rate, run.seed): run
        for run in by_budget if run.loss_curve and run.arm in arms
    }.values())  # fmt: skip
    if not runs:
        return []
    # Top of the axis: the highest loss of the runs that did not diverge, with some air.
    calm = [run for run in runs if run.state != "diverged"] or runs
    highest = max(loss for run in calm for _, loss in run.loss_curve)
    ceiling = 1.05 * highest if highest > 0 else 1.0
    x = style.token_axis(max(tokens for run in runs for tokens, _ in run.loss_curve))
    scale = altair.Scale(zero=False, domainMax=ceiling, nice=False)
    y = altair.Y("y:Q", title="training loss (nats per supervised token)", scale=scale)
    color = style.arms_apart(summary)[0]
    layers = []
    for selected, opacity, width in ((False, 0.3, 1.0), (True, 0.95, 1.8)):
        curves = [run for run in runs if run.selected == selected]
        rows = [_loss(run, *at) for run in curves for at in _thin(run.loss_curve)]
        if rows:
            line = style.chart(rows).mark_line(clip=True, opacity=opacity, strokeWidth=width)
            dash = style.dash(arms)
            layers.append(line.encode(x=x, y=y, color=color, strokeDash=dash, detail="run:N"))
    lost = [run for run in runs if run.state in LOST_STATES]
    if lost:
        rows = [_loss(run, *run.loss_curve[-1]) for run in lost]
        ends = style.chart([{**row, "y": min(row["y"], ceiling)} for row in rows])
        cross = ends.mark_point(**style.CROSS)
        layers.append(cross.encode(x=x, y=y, color=color))
    told = ["Strong lines: best learning rate; pale lines: the other rates tried."]
    if any(loss > ceiling for run in runs for _, loss in run.loss_curve):
        told.append(f"Cut at {ceiling:.3g}; × marks the end of a run that diverged or failed.")
    drawing = style.titled(layers, "Training loss", *told)
    return [ChartPanel("training", drawing, "Training loss against tokens, one line a run.")]


def _thin(curve: list[Any]) -> list[Any]:
    kept = curve[:: -(-len(curve) // POINTS_OF_A_CURVE)]
    return kept if kept[-1] == curve[-1] else [*kept, curve[-1]]


def _loss(run: RunRow, tokens: float, loss: float) -> Row:
    return {"arm": run.arm, "run": run.id, "x": tokens, "y": loss}
