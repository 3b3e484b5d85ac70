"""Speed and peak memory of every arm on this machine."""

from __future__ import annotations

from collections.abc import Callable

from laura.report import formats
from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study
from laura.results.schema import ArmCost

TOOLTIPS = {"arm": "arm", "value": "cost", "runs": "runs"}


def draw(study: Study) -> list[Panel]:
    """A panel for the speed and one for the memory; none where it was not recorded."""
    arms = study.costs.arms if study.costs else []
    panels = [
        _panel(
            "speed", ("Training speed", "Median over runs.", "tokens per second"), arms,
            lambda arm: arm.tokens_per_second, lambda value: f"{formats.count(value)} tokens/s", 1,
        ),
        _panel(
            "memory", ("Peak memory", "Largest over runs.", "GiB"), arms,
            lambda arm: arm.peak_memory_bytes, formats.memory, 2**30,
        ),
    ]  # fmt: skip
    return [panel for panel in panels if panel is not None]


def _panel(
    name: str,
    words: tuple[str, str, str],
    arms: list[ArmCost],
    read: Callable[[ArmCost], float | None],
    show: Callable[[float], str],
    unit: float,
) -> Panel | None:
    import altair

    title, subtitle, axis = words
    rows: list[style.Row] = [
        {"arm": arm.arm, "zero": 0, "x": value / unit, "value": show(value), "runs": str(arm.runs)}
        for arm in arms
        if (value := read(arm)) is not None
    ]
    if not rows:
        return None
    y = altair.Y(
        "arm:N",
        title=None,
        scale=altair.Scale(domain=[row["arm"] for row in rows], padding=0.3),
        axis=altair.Axis(labelLimit=150, grid=False, domain=False, ticks=False),
    )
    # Room for the words beside the last point.
    most = 1.35 * max(row["x"] for row in rows)
    x = altair.X(
        "x:Q",
        title=axis,
        scale=altair.Scale(domain=[0, most], nice=False),
        axis=altair.Axis(labelExpr=style.COUNT_LABEL, tickCount=5),
    )
    drawn, color = style.chart(rows), style.PALETTE[0]
    layers = [
        drawn.mark_rule(strokeWidth=2, opacity=0.5, color=color).encode(x="zero:Q", x2="x:Q", y=y),
        drawn.mark_point(filled=True, opacity=1, size=85, color=color).encode(
            x=x, y=y, tooltip=style.tooltips(**TOOLTIPS)
        ),
        drawn.mark_text(align="left", dx=8, fontSize=11).encode(x=x, y=y, text="value:N"),
    ]
    told = "; ".join(f"{row['arm']} {row['value']}" for row in rows)
    height = max(90, 24 * len(rows))
    return Panel(
        name, style.titled(layers, title, subtitle), f"{title} of each arm: {told}.", height
    )


CHART = Chart(
    name="cost",
    title="Speed and memory",
    explanation=(
        "As measured while training on this machine. The time of an arm also depends on how many "
        "rates and seeds it had, so it stands in the table alone."
    ),
    draw=draw,
)
