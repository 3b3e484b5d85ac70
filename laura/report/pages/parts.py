"""What several pages show: some arms with a remark and their last scores."""

from __future__ import annotations

from collections.abc import Mapping

from laura.report import formats
from laura.report.blocks import Cell, Column, Table
from laura.report.groups import final_groups
from laura.results.schema import Summary


def scores_table(
    summary: Summary, name: str, caption: str, heading: str, arms: Mapping[str, str]
) -> Table:
    """Arms at their best rate and largest budget: the leading task, then forgetting.

    Args:
        summary: The study.
        name: Name of the table.
        caption: What it shows.
        heading: Heading of the column of remarks.
        arms: Name to remark, in order.
    """
    names = [*([summary.primary] if summary.primary else []), *summary.forgetting_measures[:3]]
    tasks, learning = [summary.task(task) for task in names], summary.measure.learning
    found = {group.arm: group for group in final_groups(summary)}
    columns = [
        Column("arm"),
        Column(heading, wide=True),
        Column("rate", numeric=True),
        Column("seeds", numeric=True),
        *(
            Column(
                f"{t.short_title}, {formats.unit(t)}",
                "learnt" if t.name in learning else "forgot",
                True,
            )
            for t in tasks
        ),
    ]
    rows = []
    for arm, remark in arms.items():
        group = found.get(arm)
        cells = [
            Cell(
                formats.value(group.value(task.name) if group else None, task),
                formats.moved(group.change(task.name), task, task.name in learning)
                if group
                else "",
            )
            for task in tasks
        ]
        rate = group.rate if group else formats.ABSENT
        seeds = str(len(group.seeds)) if group else "0"
        rows.append([Cell(arm), Cell(remark), Cell(rate), Cell(seeds), *cells])
    return Table(name, caption, columns, rows)
