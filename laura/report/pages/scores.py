"""Every score task by task, against tokens, and arms at the same learning."""

from __future__ import annotations

from functools import partial

from laura.recipe_tasks import DRIFT
from laura.report import formats
from laura.report.analysis import Area, Matched
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
from laura.report.reading import Task
from laura.report.study import Study


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found: list[Block] = [Figure("forgetting_by_task"), Figure("learning_curves")]
    if any(name in DRIFT for name in (*study.summary.learning, *study.summary.forgetting)):
        found.append(Figure("drift"))
    if study.analysis.drift_fits:
        found += _fits(study)
    tradeoff = study.analysis.tradeoff
    if tradeoff is None:
        return found
    learning, forgetting = (study.summary.task(n) for n in (tradeoff.learning, tradeoff.forgetting))
    if tradeoff.matched:
        found += _matched(tradeoff.matched, learning, forgetting)
    if tradeoff.areas:
        found += _areas(tradeoff.areas)
    return found


def _fits(study: Study) -> list[Block]:
    columns = [
        Column("divergence"),
        Column("forgetting", wide=True),
        Column("explained", "R², quadratic fit", numeric=True),
        Column("n", "checkpoints", numeric=True),
    ]
    rows = [
        [
            Cell(study.summary.task(row.measure).title),
            Cell(study.summary.task(row.forgetting).title),
            Cell(f"{row.r_squared:.2f}"),
            Cell(str(row.n)),
        ]
        for row in study.analysis.drift_fits
    ]
    caption = "How well a divergence from the base tells what was forgotten"
    return [Heading(caption, "drift"), Table("drift-table", caption, columns, rows)]


def _matched(rows: list[Matched], learning: Task, forgetting: Task) -> list[Block]:
    unit, show = formats.change_unit(forgetting), partial(signed, task=forgetting)
    columns = [
        Column("arms"),
        Column("at learning", formats.change_unit(learning), numeric=True),
        Column("forgetting of the first", unit, numeric=True),
        Column("of the second", unit, numeric=True),
        Column("difference", "95 % interval", numeric=True),
        Column("seeds", numeric=True),
        Column("n", numeric=True),
        Column("method", wide=True),
    ]
    cells = [
        [
            Cell(" − ".join(row.arms)),
            Cell(signed(row.level, learning)),
            *(Cell(signed(value, forgetting)) for value in row.forgetting),
            Cell(signed(row.difference, forgetting), formats.ends(row.interval, show)),
            Cell(str(row.seeds)),
            Cell(str(row.n)),
            Cell(row.method),
        ]
        for row in rows
    ]
    text = (
        f"Forgetting ({forgetting.title}) of two arms where both have learnt as much "
        f"({learning.title}). Above zero: forgotten. A difference whose interval holds zero may "
        "be chance."
    )
    caption = "Forgetting at the same learning"
    return [Heading(caption, "matched"), Table("matched-table", caption, columns, cells, True),
            Prose(text, soft=True)]  # fmt: skip


def _areas(areas: list[Area]) -> list[Block]:
    caption = "Area under the trade-off of each arm"
    columns = [Column("arm"), Column("area", "95 % interval", numeric=True)]
    rows = [
        [
            Cell(area.arm),
            Cell(
                f"{area.value:.3f}",
                formats.ends(area.interval, "{:.3f}".format),
            ),
        ]
        for area in areas
    ]
    text = "Larger is better: more learnt for what was forgotten. It compares arms of one study."
    return [Heading(caption, "areas"), Table("areas-table", caption, columns, rows),
            Prose(text, soft=True)]  # fmt: skip


def signed(value: float, task: Task) -> str:
    """A change in the unit in which it is shown."""
    digits = 1 if task.is_share else 3
    return f"{value * task.scale:+.{digits}f}".replace("-", "−")


PAGE = ReportPage("scores", "Learning and forgetting", always, blocks)
