"""Training loss against tokens, every rate and seed; the best learning rate stands out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laura.report import formats
from laura.report.arms import who_is_drawn
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study
from laura.results.schema import RunRow, Summary

if TYPE_CHECKING:
    import altair

# A study of a hundred runs must not make a page of a hundred megabytes.
POINTS_OF_A_CURVE = 150
TOOLTIPS = {
    "arm": "arm",
    "loss": "training loss",
    "tokens_text": "tokens",
    "rate": "learning rate",
    "seed": "seed",
    "budget": "budget",
    "state": "state",
    "run": "run",
}


def draw(study: Study) -> list[Panel]:
    """One panel with every rate and seed that wrote a loss, of the arms that have a colour."""
    import altair

    summary = study.summary
    arms = style.coloured(summary)
    runs = _longest([run for run in summary.runs if run.arm in arms])
    if not runs:
        return []
    ceiling = _ceiling(runs)
    x = style.token_axis(max(tokens for run in runs for tokens, _ in run.loss_curve))
    y = altair.Y(
        "y:Q",
        title="training loss (nats per supervised token)",
        scale=altair.Scale(zero=False, domainMax=ceiling, nice=False),
    )
    lost = [run for run in runs if run.state in ("diverged", "failed")]
    layers = [
        *_line_layers(summary, [run for run in runs if not run.selected], x, y, 0.3, 1.0),
        *_line_layers(summary, [run for run in runs if run.selected], x, y, 0.95, 1.8),
        *_end_layers(summary, lost, ceiling),
    ]
    cut = any(loss > ceiling for run in runs for _, loss in run.loss_curve)
    lines = ["Strong lines: best learning rate; pale lines: the other rates tried."]
    if cut:
        lines.append(f"Cut at {ceiling:.3g}; × marks the end of a run that diverged or failed.")
    return [
        Panel(
            "training",
            style.titled(layers, "Training loss", *lines),
            "Training loss against tokens, one line a run.",
        )
    ]


def _longest(runs: list[RunRow]) -> list[RunRow]:
    """Of every arm, rate and seed the run with the largest budget; shorter ones only cover it."""
    found: dict[tuple[str, float, int], RunRow] = {}
    for run in sorted(runs, key=lambda run: run.budget or 0.0):
        if run.loss_curve:
            found[run.arm, run.learning_rate, run.seed] = run
    return list(found.values())


def _ceiling(runs: list[RunRow]) -> float:
    """Top of the axis: the highest loss of the runs that did not diverge, with some air."""
    calm = [run for run in runs if run.state != "diverged"] or runs
    losses = [loss for run in calm for _, loss in run.loss_curve]
    return 1.05 * max(losses) if max(losses) > 0 else 1.0


def _thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(curve) // POINTS_OF_A_CURVE)
    kept = curve[::stride]
    return kept if kept[-1] == curve[-1] else [*kept, curve[-1]]


def _row(summary: Summary, run: RunRow, tokens: float, loss: float) -> style.Row:
    return {
        "arm": run.arm,
        "run": run.id,
        "tokens": tokens,
        "y": loss,
        "loss": f"{loss:.3f} nats",
        "tokens_text": formats.count(tokens),
        "rate": formats.rate(run.learning_rate),
        "seed": str(run.seed),
        "budget": formats.budget_of(summary, run.budget),
        "state": run.state,
    }


def _line_layers(
    summary: Summary, runs: list[RunRow], x: altair.X, y: altair.Y, opacity: float, width: float
) -> list[altair.Chart]:
    rows = [
        _row(summary, run, tokens, loss) for run in runs for tokens, loss in _thin(run.loss_curve)
    ]
    if not rows:
        return []
    return [
        style.chart(rows)
        .mark_line(clip=True, opacity=opacity, strokeWidth=width)
        .encode(
            x=x,
            y=y,
            color=style.color(summary),
            strokeDash=style.dash(style.coloured(summary)),
            detail="run:N",
            tooltip=style.tooltips(**TOOLTIPS),
        )
    ]


def _end_layers(summary: Summary, runs: list[RunRow], ceiling: float) -> list[altair.Chart]:
    rows = []
    for run in runs:
        tokens, loss = run.loss_curve[-1]
        rows.append({**_row(summary, run, tokens, loss), "y": min(loss, ceiling)})
    if not rows:
        return []
    return [
        style.chart(rows)
        .mark_point(shape=style.CROSS, size=110, strokeWidth=2.5, opacity=1)
        .encode(
            x="tokens:Q",
            y="y:Q",
            color=style.color(summary),
            tooltip=style.tooltips(**TOOLTIPS),
        )
    ]


def _note(study: Study) -> str:
    every = [arm.name for arm in study.summary.arms]
    return who_is_drawn(style.coloured(study.summary), every, "The table above has the runs of")


CHART = Chart(
    name="loss_curves",
    title="Training loss",
    explanation=(
        "The loss the optimiser saw, step by step, for every arm, rate and seed at its largest "
        "budget. A smooth fall is healthy; spikes or a rise "
        "mean that the learning rate is too high. Low training loss alone says nothing about "
        "forgetting."
    ),
    draw=draw,
    note=_note,
)
