"""Lines of any kind of thing on common axes: what several charts are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from laura.report import formats
from laura.report.charts import style
from laura.report.groups import Group
from laura.results.schema import TaskFacts

if TYPE_CHECKING:
    import altair

TOOLTIPS = {"series": "what", "x_text": "at", "value": "value", "n": "n"}


def score_row(group: Group, name: str, task: TaskFacts) -> style.Row | None:
    """What rows of charts over arms have in common; None where the arm was not measured.

    Args:
        group: The arm's runs at its best rate.
        name: The measure, as the summary calls it.
        task: The same measure.
    """
    score = group.value(name)
    if score is None:
        return None
    return {
        "arm": group.arm,
        **style.spread("y", score, task),
        "value": formats.value(score, task, True),
        "change": formats.change(group.change(name), task, True),
        "rate": group.rate,
        "seeds": formats.seeds(group.seeds),
        "n": f"{score.n} {task.items}",
    }


def lines(
    rows: list[style.Row],
    names: Sequence[str],
    x: altair.X,
    y: altair.Y,
    *,
    tooltips: dict[str, str] = TOOLTIPS,
    palette: Sequence[str] = style.PALETTE,
) -> list[altair.Chart]:
    """Lines with markers and error bars, told apart by colour and by shape.

    Args:
        rows: With `series`, `x`, `y`, and the fields of the tooltips; error bars where
            `y_low` and `y_high` stand.
        names: Every series, in the order of the legend.
        x: Axis.
        y: Axis.
        tooltips: Field to label.
        palette: Colours.
    """
    import altair

    legend = style.legend(names)
    colors = [palette[place % len(palette)] for place in range(len(names))]
    shapes = [style.SHAPES[place % len(style.SHAPES)] for place in range(len(names))]
    domain = list(names)
    color = altair.Color("series:N", scale=altair.Scale(domain=domain, range=colors), legend=legend)
    shape = altair.Shape("series:N", scale=altair.Scale(domain=domain, range=shapes), legend=legend)
    drawn = style.chart(rows)
    bars = style.chart([row for row in rows if "y_low" in row])
    tip = style.tooltips(**tooltips)
    return [
        drawn.mark_line(strokeWidth=2, opacity=0.8).encode(x=x, y=y, color=color),
        *(
            [
                bars.mark_rule(strokeWidth=1.2, opacity=0.65).encode(
                    x=x, y="y_low:Q", y2="y_high:Q", color=color
                )
            ]
            if any("y_low" in row for row in rows)
            else []
        ),
        drawn.mark_point(filled=True, opacity=1, size=70).encode(
            x=x, y=y, color=color, shape=shape, tooltip=tip
        ),
    ]


def listed_axis(
    field: str, title: str, values: Sequence[float], *, log: bool, share: bool = False
) -> altair.X:
    """An axis with a tick at every value that was tried, and at no other."""
    import altair

    ticks = sorted(set(values))
    return altair.X(
        f"{field}:Q",
        title=title,
        scale=altair.Scale(type="log", base=2) if log else altair.Scale(padding=14),
        axis=altair.Axis(
            values=ticks, format="%" if share else "~s", labelOverlap=True, grid=False
        ),
    )
