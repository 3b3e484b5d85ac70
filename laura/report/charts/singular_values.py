"""Singular values of base, tuned and update of a matrix (Biderman et al. 2024, figure S7)."""

from __future__ import annotations

from laura.report import formats
from laura.report.charts import series, style
from laura.report.charts.panel import Chart, Panel
from laura.report.charts.spectra import arms_note, of_representatives
from laura.report.study import Study
from laura.results.schema import CheckpointSpectra, MatrixSpectra, Summary

MOST_PANELS, POINTS_OF_A_CURVE = 8, 120
KINDS = ("base", "tuned", "update")
TOOLTIPS = {"series": "matrix", "place": "number", "value": "singular value"}


def draw(study: Study) -> list[Panel]:
    """The first matrices whose values were kept, a panel an arm, at the largest budget."""
    last: dict[tuple[str, str], tuple[CheckpointSpectra, MatrixSpectra]] = {}
    for one in sorted(of_representatives(study), key=lambda one: (one.budget, -one.seed)):
        for matrix in one.matrices:
            if matrix.kept_values:
                last[matrix.name, one.arm] = (one, matrix)
    order = {arm.name: place for place, arm in enumerate(study.summary.arms)}
    names = list(dict.fromkeys(name for name, _ in last))
    keys = sorted(last, key=lambda key: (names.index(key[0]), order[key[1]]))
    pairs = [last[key] for key in keys[:MOST_PANELS]]
    return [_panel(study.summary, place, *pair) for place, pair in enumerate(pairs)]


def _panel(summary: Summary, place: int, one: CheckpointSpectra, matrix: MatrixSpectra) -> Panel:
    import altair

    rows = []
    for kind, values in matrix.kept_values.items():
        stride = -(-len(values) // POINTS_OF_A_CURVE)
        for number in range(0, len(values), stride):
            if values[number] > 0:  # zero has no place on a logarithmic axis
                text = f"{values[number]:.4g}"
                rows.append(
                    {"series": kind, "x": number + 1, "y": values[number],
                     "place": str(number + 1), "value": text}
                )  # fmt: skip
    x = altair.X("x:Q", title="number of the singular value", scale=altair.Scale(type="log"))
    y = altair.Y("y:Q", title="singular value", scale=altair.Scale(type="log"))
    [line, *_] = series.lines(rows, KINDS, x, y, tooltips=TOOLTIPS)
    dashed = line.encode(strokeDash=style.dash(KINDS, "series"), tooltip=style.tooltips(**TOOLTIPS))
    budget = formats.budget_of(summary, one.budget)
    title = style.titled(
        [dashed], matrix.name.removeprefix("model.layers."), f"{one.arm}, {budget}, seed {one.seed}"
    )
    text = f"Singular values of base, tuned and update of {matrix.name}, {one.arm}, {budget}."
    return Panel(str(place), title, text)


CHART = Chart(
    name="singular_values",
    title="Spectra of single matrices",
    explanation=(
        "Both axes are logarithmic. Tuned and base usually lie on one another, and the update far "
        "below them; where its rank is low it falls off sharply."
    ),
    draw=draw,
    note=arms_note,
)
