"""What a chart is, and how every chart looks: colour and shape, error bars, titles, the base.

A method has one hue in every figure of every study, the page's (`templates/chart.css`), and
its arms differ in shade. What is no arm has the colours of Okabe and Ito (2008), made to be
told apart with any kind of colour vision; yellow and black are left out, since one cannot be
seen on white and the other not in the dark. Shapes differ as well, so that a print in grey
still tells arms apart. Of more than seven arms, lines are coloured for those that stand for
all, and grey for the others.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair

from laura.report import formats
from laura.report.arms import places, representatives, who_is_drawn
from laura.report.study import Study
from laura.results.schema import Summary, TaskFacts
from laura.results.statistics import Estimate

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7A2E")
METHOD_PALETTES = {
    "full": ("#C2500A", "#8F3A12", "#8A5A00", "#B5382A"),
    "lora": ("#0A69B0", "#4556C7", "#00707D", "#1F4E79"),
}
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 1], [1, 3])
GREY = "#7A7A7A"
# A drawn cross: the character is missing from many fonts.
CROSS: dict[str, Any] = {
    "shape": "M-1,-1L1,1M-1,1L1,-1",
    "size": 110,
    "strokeWidth": 2.5,
    "opacity": 1,
}
PANEL_HEIGHT = 290
BARS = "Bars: ± 1 standard error."

Row = dict[str, Any]
# What 300 pixels hold, a phone's width less its margins; of legends, half of it.
TITLE_LETTERS, SUBTITLE_LETTERS, LEGEND_LETTERS = 40, 54, 19
AXIS_LETTERS = 54
COUNT_LABEL = "datum.value == 0 ? '0' : format(datum.value, '~s')"


@dataclass(frozen=True)
class ChartPanel:
    """One set of axes.

    Attributes:
        name: Short name, unique within its chart.
        drawing: The Altair layers, without width and height.
        description: The panel in one sentence, read aloud by screen readers.
        height: Height in pixels.
    """

    name: str
    drawing: altair.LayerChart
    description: str
    height: int = PANEL_HEIGHT


@dataclass(frozen=True)
class Chart:
    """One figure of the report.

    Attributes:
        name: Name of its files, figures/NAME.svg and figures/NAME.png.
        title: Heading on the page.
        explanation: How to read it, in plain language.
        draw: Gives the panels; none where the study holds nothing to draw.
        note: What must be said of this study's chart besides, such as which arms it holds.
        page: The page that it ends, where no page puts it at a place of its own.
    """

    name: str
    title: str
    explanation: str
    draw: Callable[[Study], list[ChartPanel]]
    note: Callable[[Study], str] = lambda study: ""
    page: str = "scores"

    def caption(self, study: Study) -> str:
        """The explanation, and what must be said of this study's chart."""
        return f"{self.explanation} {self.note(study)}".strip()


def chart_of(
    title: str, note: Callable[[Study], str] = lambda study: ""
) -> Callable[[Callable[[Study], list[ChartPanel]]], Chart]:
    """Makes the chart of a function that draws it; what its docstring says stands on the page."""

    def make(draw: Callable[[Study], list[ChartPanel]]) -> Chart:
        return Chart(draw.__name__, title, " ".join(str(draw.__doc__).split()), draw, note)

    return make


# ----- colour and shape -----


def coloured(summary: Summary) -> list[str]:
    """Arms that have a colour of their own in charts of lines: all, or those that stand for all."""
    if len(summary.arms) <= len(PALETTE):
        return list(places(summary))
    return representatives(summary)


def colour_note(study: Study) -> str:
    """Which arms have a colour of their own; empty where every arm has one."""
    whole = "The others are grey; the table of all arms has"
    return who_is_drawn(coloured(study.summary), places(study.summary), whole, "In colour are")


def arm_hues(summary: Summary) -> dict[str, str]:
    """Colour of each arm, by its method."""
    seen: Counter[str] = Counter()
    found = {}
    for arm in summary.arms:
        method = "full" if arm.method == "full" else "lora"
        found[arm.name] = hue(seen[method], METHOD_PALETTES[method])
        seen[method] += 1
    return found


def hue(place: int, palette: Sequence[str] = PALETTE) -> str:
    """Colour of a place: after the last one the same darker, then lighter."""
    shade = [None, (0.62, 0), (0.62, 255)][place // len(palette) % 3]
    color = palette[place % len(palette)]
    if shade is None:
        return color
    share, end = shade
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * part + (1 - share) * end):02X}" for part in parts)


def legend(names: Collection[str]) -> altair.Legend:
    """Names below the chart, in as many columns as a phone holds."""
    columns = 2 if max(map(len, names), default=0) <= LEGEND_LETTERS else 1
    return altair.Legend(title=None, orient="bottom", columns=columns)


def told_apart(
    field: str,
    named: Mapping[str, int],
    colors: Sequence[str] | None = None,
    key: altair.Legend | None = None,
) -> tuple[altair.Color, altair.Shape]:
    """Colour and shape by a field, from name to place; `colors` instead of the places' own."""
    names, key = list(named), key or legend(named)
    colors = colors or [hue(place) for place in named.values()]
    shapes = [SHAPES[place % len(SHAPES)] for place in named.values()]
    return (
        altair.Color(f"{field}:N", scale=altair.Scale(domain=names, range=colors), legend=key),
        altair.Shape(f"{field}:N", scale=altair.Scale(domain=names, range=shapes), legend=key),
    )


def arms_apart(
    summary: Summary, arms: Collection[str] | None = None
) -> tuple[altair.Color, altair.Shape]:
    """Colour and shape by arm, the same in every chart of a study; for None those `coloured`."""
    first = coloured(summary)
    order = [*first, *(name for name in places(summary) if name not in first)]
    wanted = first if arms is None else arms
    named, hues = {name: at for at, name in enumerate(order) if name in wanted}, arm_hues(summary)
    return told_apart("arm", named, [hues[name] for name in named])


def series_apart(names: Collection[str]) -> tuple[altair.Color, altair.Shape]:
    """Colour and shape of what is told by `series`, in the order of the legend."""
    return told_apart("series", {name: place for place, name in enumerate(names)})


def dash(names: Collection[str]) -> altair.StrokeDash:
    """Pattern of an arm's line, where it has no markers to tell it by."""
    patterns = [DASHES[at % len(DASHES)] for at in range(len(names))]
    scale = altair.Scale(domain=list(names), range=patterns)
    return altair.StrokeDash("arm:N", scale=scale, legend=legend(names))


def of_arms(rows: list[Row], arms: Collection[str]) -> tuple[list[Row], list[Row]]:
    """Rows of these arms, and those of the others."""
    return [r for r in rows if r["arm"] in arms], [r for r in rows if r["arm"] not in arms]


# ----- rows and layers -----


def spread(prefix: str, estimate: Estimate, scale: float = 1.0) -> Row:
    """PREFIX, PREFIX_low and PREFIX_high: a value and one standard error around it, as shown."""
    center, error = estimate.value * scale, estimate.stderr * scale
    return {prefix: center, f"{prefix}_low": center - error, f"{prefix}_high": center + error}


def chart(rows: list[Row]) -> altair.Chart:
    """A chart on rows held in the specification itself."""
    # A tuple, because Altair copies lists deeply again and again while layers are stacked.
    return altair.Chart(altair.InlineData(values=tuple(rows)))


def lines(
    rows: list[Row], x: altair.X, y: altair.Y, color: altair.Color, shape: altair.Shape,
    between: Sequence[altair.Chart] = (),
) -> list[altair.Chart]:  # fmt: skip
    """Lines with markers, and error bars where rows have them; `between` lies below the markers."""
    drawn = chart(rows)
    layers = [drawn.mark_line(strokeWidth=2, opacity=0.8).encode(x=x, y=y, color=color)]
    if any("y_low" in row for row in rows):
        bars = drawn.mark_rule(strokeWidth=1.2, opacity=0.65)
        layers.append(bars.encode(x=x, y="y_low:Q", y2="y_high:Q", color=color))
    points = drawn.mark_point(filled=True, opacity=1, size=70)
    marked = points.encode(x=x, y=y, color=color, shape=shape)
    return [*layers, *between, marked]


def grey_lines(rows: list[Row], x: altair.X, y: altair.Y, order: str = "x") -> list[altair.Chart]:
    """Thin lines of the arms that have no colour; none without rows."""
    if not rows:
        return []
    drawn = chart(rows)
    line = drawn.mark_line(strokeWidth=1, opacity=0.35, color=GREY)
    point = drawn.mark_point(filled=True, size=28, opacity=0.6, color=GREY, shape="circle")
    return [
        line.encode(x=x, y=y, detail="arm:N", order=altair.Order(f"{order}:Q")),
        point.encode(x=x, y=y),
    ]


def base_layers(summary: Summary, name: str) -> list[altair.Chart]:
    """The base's score as a dashed line with its name; nothing where it was not measured."""
    task, score = summary.task(name), summary.base.scores.get(name)
    if score is None:
        return []
    here = chart([{"y": score.value * task.scale}])
    line = here.mark_rule(color=GREY, strokeDash=[5, 4], strokeWidth=1.5)
    word = here.mark_text(text="base", align="right", dx=-2, dy=-6, fontSize=11.5)
    return [
        line.encode(y="y:Q"),
        word.encode(x=altair.value("width"), y="y:Q"),
    ]


def dots(
    rows: list[Row], x: altair.X, y: altair.Y, offset: altair.YOffset,
    color: altair.Color, shape: altair.Shape,
) -> list[altair.Chart]:  # fmt: skip
    """Points with horizontal error bars, side by side within a row."""
    drawn = chart(rows)
    bars = drawn.mark_rule(strokeWidth=2, opacity=0.7)
    points = drawn.mark_point(filled=True, opacity=1, size=85)
    return [
        bars.encode(x="x_low:Q", x2="x_high:Q", y=y, yOffset=offset, color=color),
        points.encode(x=x, y=y, yOffset=offset, color=color, shape=shape),
    ]


def titled(layers: Sequence[altair.Chart], title: str, *subtitle: str) -> altair.LayerChart:
    """Layers on common axes under a title that says what is seen.

    Long lines are broken: on a phone a title wider than the chart leaves no room for its axes.
    """
    text = textwrap.wrap(title, TITLE_LETTERS, break_on_hyphens=False)
    below = [part for line in subtitle for part in textwrap.wrap(line, SUBTITLE_LETTERS)]
    return altair.LayerChart(layer=list(layers)).properties(
        title=altair.TitleParams(text if len(text) > 1 else title, subtitle=below, anchor="start")
    )


# ----- axes -----

_AMOUNTS = altair.Axis(format="~r", tickCount=6)  # few enough ticks for a phone


def value_axis(task: TaskFacts, padding: int = 14) -> altair.Y:
    """A score upwards; its title in lines no longer than a chart is high."""
    told = [f"{task.short_title} ({formats.unit(task)})", formats.items(task)]
    text = ", ".join(told)
    title = told if len(text) > AXIS_LETTERS else [text]
    return altair.Y("y:Q", title=title, scale=altair.Scale(zero=False, padding=padding))


def learnt_axis(title: str | list[str]) -> altair.Y:
    """What was learnt: more is up."""
    scale = altair.Scale(zero=False, padding=14)
    return altair.Y("y:Q", title=title, scale=scale, axis=_AMOUNTS)


def forgotten_axis(title: str | list[str]) -> altair.X:
    """What was forgotten: less is right, so that better is."""
    scale = altair.Scale(reverse=True, zero=False, padding=14)
    return altair.X("x:Q", title=title, scale=scale, axis=_AMOUNTS)


def moved_title(task: TaskFacts, learnt: bool) -> list[str]:
    """Axis title of what was learnt or forgotten, in lines short enough for a phone."""
    verb = "learnt" if learnt else "forgot"
    counted = f", {formats.items(task)}" if task.n else ""
    lines_of = textwrap.wrap(task.title, 40, break_on_hyphens=False)
    return [*lines_of, f"{verb}, {formats.change_unit(task)}{counted}"]


def rows_axis(field: str, names: Collection[str], inner: float) -> altair.Y:
    """One row a name."""
    return altair.Y(
        f"{field}:N",
        title=None,
        scale=altair.Scale(domain=list(names), paddingInner=inner, paddingOuter=0.2),
        axis=altair.Axis(labelLimit=150, grid=False, domain=False, ticks=False),
    )


def token_axis(most: float) -> altair.X:
    """Tokens on x from zero to a little beyond the most there are."""
    return altair.X(
        "x:Q",
        title="tokens trained on",
        scale=altair.Scale(domain=[0, 1.04 * most], nice=False),
        axis=altair.Axis(labelExpr=COUNT_LABEL, tickCount=6),
    )


def listed_axis(title: str, values: Collection[float], format: str = "~s") -> altair.X:
    """An axis with a tick at every value that was tried, and at no other.

    Logarithmic for counts, plain for shares (format `%`).
    """
    scale = altair.Scale(padding=14) if format == "%" else altair.Scale(type="log", base=2)
    axis = altair.Axis(values=sorted(set(values)), format=format, labelOverlap=True, grid=False)
    return altair.X("x:Q", title=title, scale=scale, axis=axis)
