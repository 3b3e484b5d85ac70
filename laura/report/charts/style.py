"""How every chart looks: colour and shape of an arm, error bars, titles, the base.

Colours are those of Okabe and Ito (2008), made to be told apart with any kind
of colour vision; yellow and black are left out, since one cannot be seen on
white and the other not in the dark. Shapes differ as well, so that a print in
grey still tells arms apart. Seven colours are all there are: of more arms, lines
are coloured for those that stand for all, and grey for the others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from laura.report import formats
from laura.report.arms import representatives, who_is_drawn
from laura.report.study import Study
from laura.results.schema import Summary, TaskFacts
from laura.results.statistics import Estimate

if TYPE_CHECKING:
    import altair

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7A2E")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 1], [1, 3])
GREY = "#7A7A7A"
INK = "#222222"
# A drawn cross: the character is missing from many fonts.
CROSS = "M-1,-1L1,1M-1,1L1,-1"

Row = dict[str, Any]
# What 300 pixels hold, a phone's width less its margins; of legends, half of it.
TITLE_LETTERS, SUBTITLE_LETTERS, LEGEND_LETTERS = 40, 54, 19
AXIS_LETTERS = 54
COUNT_LABEL = "datum.value == 0 ? '0' : format(datum.value, '~s')"


def coloured(summary: Summary) -> list[str]:
    """Arms that have a colour of their own in charts of lines: all, or those that stand for all."""
    if len(summary.arms) <= len(PALETTE):
        return [arm.name for arm in summary.arms]
    return representatives(summary)


def colour_note(study: Study) -> str:
    """Which arms have a colour of their own; empty where every arm has one."""
    every = [arm.name for arm in study.summary.arms]
    whole = "The others are grey and told by their tooltips; the first page's table has"
    return who_is_drawn(coloured(study.summary), every, whole, "In colour are")


def color(summary: Summary, arms: Collection[str] | None = None) -> altair.Color:
    """Colour by arm, the same in every chart of a study; without names those `coloured`."""
    import altair

    places = _places(summary, arms)
    return altair.Color(
        "arm:N",
        scale=altair.Scale(domain=list(places), range=list(map(hue, places.values()))),
        legend=legend(places),
    )


def shape(summary: Summary, arms: Collection[str] | None = None) -> altair.Shape:
    """Shape by arm, the same in every chart of a study; without names those `coloured`."""
    import altair

    places = _places(summary, arms)
    shapes = [SHAPES[place % len(SHAPES)] for place in places.values()]
    return altair.Shape(
        "arm:N", scale=altair.Scale(domain=list(places), range=shapes), legend=legend(places)
    )


def hue(place: int) -> str:
    """Colour of a place: after seven the same ones darker, then lighter."""
    shade = [None, (0.62, 0), (0.62, 255)][place // len(PALETTE) % 3]
    color = PALETTE[place % len(PALETTE)]
    if shade is None:
        return color
    share, end = shade
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * part + (1 - share) * end):02X}" for part in parts)


def legend(names: Collection[str]) -> altair.Legend:
    """Names below the chart, in as many columns as a phone holds."""
    import altair

    columns = 2 if max(map(len, names), default=0) <= LEGEND_LETTERS else 1
    return altair.Legend(title=None, orient="bottom", columns=columns)


def grey_lines(
    rows: list[Row], x: altair.X, y: altair.Y, names: dict[str, str]
) -> list[altair.Chart]:
    """Thin lines of the arms that have no colour, in the order of `order`; none without rows."""
    import altair

    if not rows:
        return []
    drawn, order = chart(rows), altair.Order("order:Q")
    return [
        drawn.mark_line(strokeWidth=1, opacity=0.35, color=GREY).encode(
            x=x, y=y, detail="arm:N", order=order
        ),
        drawn.mark_point(filled=True, size=28, opacity=0.6, color=GREY, shape="circle").encode(
            x=x, y=y, tooltip=tooltips(**names)
        ),
    ]


def of_arms(rows: list[Row], arms: Collection[str]) -> tuple[list[Row], list[Row]]:
    """Rows of these arms, and those of the others."""
    return [r for r in rows if r["arm"] in arms], [r for r in rows if r["arm"] not in arms]


def dash(names: Collection[str], field: str = "arm") -> altair.StrokeDash:
    """Pattern of a line by what it stands for, where it has no markers to tell it by."""
    import altair

    return altair.StrokeDash(
        f"{field}:N",
        scale=altair.Scale(
            domain=list(names), range=[DASHES[at % len(DASHES)] for at in range(len(names))]
        ),
        legend=legend(names),
    )


def _places(summary: Summary, arms: Collection[str] | None) -> dict[str, int]:
    """Arms with their places: those with a colour of their own first."""
    first = coloured(summary)
    others = [arm.name for arm in summary.arms if arm.name not in first]
    wanted = first if arms is None else arms
    return {name: place for place, name in enumerate([*first, *others]) if name in wanted}


def chart(rows: list[Row]) -> altair.Chart:
    """A chart on rows held in the specification itself."""
    import altair

    # A tuple, because Altair copies lists deeply again and again while layers are stacked.
    return altair.Chart(altair.InlineData(values=tuple(rows)))


def titled(layers: list[altair.Chart], title: str, *subtitle: str) -> altair.LayerChart:
    """Layers on common axes under a title that says what is seen.

    Long lines are broken: on a phone a title wider than the chart leaves no room for its axes.
    """
    import altair

    text = textwrap.wrap(title, TITLE_LETTERS, break_on_hyphens=False)
    lines = [part for line in subtitle for part in textwrap.wrap(line, SUBTITLE_LETTERS)]
    return altair.LayerChart(layer=layers).properties(
        title=altair.TitleParams(text if len(text) > 1 else title, subtitle=lines, anchor="start")
    )


def tooltips(**names: str) -> list[altair.Tooltip]:
    """Tooltip lines, field to label; every field is text already."""
    import altair

    return [altair.Tooltip(f"{field}:N", title=label) for field, label in names.items()]


def spread(prefix: str, estimate: Estimate, task: TaskFacts) -> Row:
    """PREFIX, PREFIX_low and PREFIX_high: a value and one standard error around it, as shown."""
    center, error = estimate.value * task.scale, estimate.stderr * task.scale
    return {prefix: center, f"{prefix}_low": center - error, f"{prefix}_high": center + error}


def base_layers(summary: Summary, name: str) -> list[altair.Chart]:
    """The base's score as a dashed line with its name; nothing where it was not measured."""
    import altair

    task, score = summary.task(name), summary.base.scores.get(name)
    if score is None:
        return []
    here = chart([{"y": score.value * task.scale, "value": formats.value(score, task, True)}])
    tip = tooltips(value="base")
    word = here.mark_text(text="base", align="right", dx=-2, dy=-6, fontSize=11.5)
    return [
        here.mark_rule(color=GREY, strokeDash=[5, 4], strokeWidth=1.5).encode(y="y:Q", tooltip=tip),
        word.encode(x=altair.value("width"), y="y:Q"),
    ]


def value_title(task: TaskFacts) -> list[str]:
    """Axis title of a score, in lines no longer than a chart is high."""
    lines = [f"{task.short_title} ({formats.unit(task)})", formats.items(task)]
    text = ", ".join(lines)
    return lines if len(text) > AXIS_LETTERS else [text]


def moved_title(verb: str, task: TaskFacts) -> list[str]:
    """Axis title of what was learnt or forgotten, in lines short enough for a phone.

    Args:
        verb: `learnt` or `forgot`.
        task: What it is told by.
    """
    counted = f", {formats.items(task)}" if task.n else ""
    return [
        *textwrap.wrap(task.title, 40, break_on_hyphens=False),
        f"{verb}, {formats.change_unit(task)}{counted}",
    ]


def amount_axis() -> altair.Axis:
    """Axis of what was learnt or forgotten: few enough ticks for a phone."""
    import altair

    return altair.Axis(format="~r", tickCount=6)


def token_axis(most: float) -> altair.X:
    """Tokens on x from zero to a little beyond the most there are."""
    import altair

    return altair.X(
        "tokens:Q",
        title="tokens trained on",
        scale=altair.Scale(domain=[0, 1.04 * most], nice=False),
        axis=altair.Axis(labelExpr=COUNT_LABEL, tickCount=6),
    )


def direction(task: TaskFacts) -> str:
    """Which way is good, in words."""
    return "higher is better" if task.higher_is_better else "lower is better"


def learnt_scale() -> altair.Scale:
    """Scale of what was learnt: more is up."""
    import altair

    return altair.Scale(zero=False, padding=14)


def forgotten_scale() -> altair.Scale:
    """Scale of what was forgotten: less is right, so that better is."""
    import altair

    return altair.Scale(reverse=True, zero=False, padding=14)


def configuration(background: str | None) -> dict[str, Any]:
    """Vega-Lite configuration; the page recolours text and grid for the dark by its own style."""
    return {
        "background": background or "transparent",
        "font": "sans-serif",
        "padding": 6,
        "view": {"stroke": None},
        "axis": {
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "titleColor": INK,
            "labelColor": INK,
            "gridColor": "#E4E4E4",
            "domainColor": "#9A9A9A",
            "tickColor": "#9A9A9A",
        },
        "title": {
            "fontSize": 13.5,
            "fontWeight": 600,
            "subtitleFontSize": 11.5,
            "subtitlePadding": 4,
            "subtitleColor": "#555555",
            "color": INK,
            "offset": 12,
        },
        "legend": {
            "labelFontSize": 11.5,
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "labelLimit": 220,
            "symbolOpacity": 1,
            "symbolBaseFillColor": GREY,
            "symbolBaseStrokeColor": GREY,
            "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 4}},
            "symbolStrokeWidth": 2,
            "labelColor": INK,
            "titleColor": INK,
        },
    }
