"""Scores against learning rate, and how smoothly the runs at each rate trained."""

from __future__ import annotations

from laura.report import formats
from laura.report.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    Heading,
    Prose,
    ReportPage,
    Table,
    always,
)
from laura.report.study import Study
from laura.results.schema import RunSpikes


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found: list[Block] = [Figure("learning_rates")]
    if study.analysis.spikes:
        found += _spikes(study)
    return found


def _spikes(study: Study) -> list[Block]:
    spikes = study.analysis.spikes
    heading = Heading("Loss spikes", "spikes")
    text = (
        "A spike is a stretch of steps whose training loss stands more than seven robust "
        "deviations above the median of the 32 steps before. Large ones mean that a rate is near "
        "the edge of what the arm bears; where the loss is near zero, small ones count as well."
    )
    with_some = [one for one in spikes if one.count]
    if not with_some:
        return [heading, Prose(f"None in {len(spikes)} runs. {text}")]
    told = f"{len(with_some)} of {len(spikes)} runs had one. {text}"
    return [heading, Prose(told), _table(study)]


def _table(study: Study) -> Table:
    order = {arm.name: place for place, arm in enumerate(study.summary.arms)}
    best = {(arm.name, rate) for arm in study.summary.arms for rate in arm.best.values()}
    cells: dict[tuple[str, float], list[RunSpikes]] = {}
    for one in study.analysis.spikes:
        cells.setdefault((one.arm, one.learning_rate), []).append(one)
    columns = [
        Column("arm", filter=True),
        Column("rate", numeric=True),
        Column("best rate"),
        Column("runs", numeric=True),
        Column("spikes", "all runs", numeric=True),
        Column("per 1,000 steps", numeric=True),
        Column("largest rise", "nats per token", numeric=True),
    ]
    rows = [
        [
            Cell(arm),
            Cell(formats.rate(rate), order=rate),
            Cell("yes" if (arm, rate) in best else ""),
            Cell(str(len(own)), order=len(own)),
            *_counts(own),
        ]
        for (arm, rate), own in sorted(
            cells.items(), key=lambda cell: (order.get(cell[0][0], len(order)), cell[0])
        )
    ]
    return Table("spikes-table", "Loss spikes by arm and learning rate", columns, rows, True)


def _counts(own: list[RunSpikes]) -> list[Cell]:
    """Number of spikes, how often, and the largest."""
    found, steps = sum(one.count for one in own), sum(one.n for one in own)
    often = 1000 * found / steps if steps else None
    worst = max((one.worst for one in own if one.worst is not None), default=None)
    return [
        Cell(str(found), order=found),
        Cell(formats.ABSENT if often is None else f"{often:.2f}", order=often),
        Cell(formats.ABSENT if worst is None else f"{worst:.2f}", order=worst),
    ]


PAGE = ReportPage("learning-rate", "Learning rate", always, blocks)
