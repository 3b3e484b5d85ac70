"""Every score task by task, against tokens, and arms beside one another."""

from __future__ import annotations

from laura.recipe.tasks import DRIFT
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
from laura.report.pages.claims import EDGE
from laura.report.study import Study
from laura.results.schema import Area, Comparison, Estimated


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found: list[Block] = [Figure("forgetting_by_task"), Figure("learning_curves")]
    if any(
        name in DRIFT
        for name in (*study.summary.measure.learning, *study.summary.measure.forgetting)
    ):
        found.append(Figure("drift"))
    if study.analysis.drift_fit:
        found += _fits(study)
    if study.judgement is not None and study.judgement.comparisons:
        found += _compared(study.judgement.comparisons)
    if study.analysis.tradeoff is not None and study.analysis.tradeoff.area:
        found += _areas(study.analysis.tradeoff.area)
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
        for row in study.analysis.drift_fit
    ]
    caption = "How well a divergence from the base tells what was forgotten"
    return [Heading(caption, "drift"), Table("drift-table", caption, columns, rows)]


def _compared(rows: list[Comparison]) -> list[Block]:
    columns = [
        Column("arms", "first minus second"),
        Column("learnt", "each at its best rate", numeric=True),
        Column("forgot", "each at its best rate", numeric=True),
        Column("forgot at equal learning", "over all rates and budgets", numeric=True),
        Column("levels of learning", "that both reach", numeric=True),
        Column("seeds", numeric=True),
        Column("n", numeric=True),
        Column("to bear in mind", wide=True),
    ]
    cells = [
        [
            Cell(" − ".join(row.arms)),
            *map(_estimate, (row.learning, row.forgetting, row.equal_learning)),
            Cell(_levels(row)),
            *_behind(row),
            Cell(". ".join(part for part in (EDGE if row.edge else "", row.reason) if part)),
        ]
        for row in rows
    ]
    text = (
        "Two questions. Each tuned: both arms at the rate that validation chose, seed by seed. At "
        "equal learning: the least that each forgets over all its rates and budgets, where both "
        "have learnt as much. Below zero under “forgot”, the first arm forgot less. Intervals "
        "hold the errors over seeds and items; one that holds zero tells nothing apart."
    )
    caption = "Two arms beside one another"
    return [Heading(caption, "compared"), Table("compared-table", caption, columns, cells, True),
            Prose(text, soft=True)]  # fmt: skip


def _estimate(found: Estimated | None) -> Cell:
    if found is None:
        return Cell(formats.ABSENT)
    text = formats.points(found.value, found.unit)
    return Cell(text, formats.interval(found), order=found.value)


def _levels(row: Comparison) -> str:
    if row.levels is None:
        return formats.ABSENT
    unit = row.learning.unit if row.learning is not None else ""
    return formats.ends(row.levels, lambda level: formats.points(level, unit))


def _behind(row: Comparison) -> list[Cell]:
    """The fewest seeds and items behind the estimates of a row."""
    found = [one for one in (row.learning, row.forgetting, row.equal_learning) if one is not None]
    if not found:
        return [Cell(formats.ABSENT)] * 2
    seeds, items = (min(getattr(one, name) for one in found) for name in ("seeds", "n"))
    return [Cell(str(seeds), order=seeds), Cell(str(items), order=items)]


def _areas(areas: dict[str, Area]) -> list[Block]:
    caption = "Area under the trade-off of each arm"
    columns = [Column("arm"), Column("area", "95 % interval", numeric=True)]
    rows = [
        [
            Cell(arm),
            Cell(
                f"{area.value:.3f}",
                formats.ends(area.interval, "{:.3f}".format),
            ),
        ]
        for arm, area in areas.items()
    ]
    text = "Larger is better: more learnt for what was forgotten. It compares arms of one study."
    return [Heading(caption, "areas"), Table("areas-table", caption, columns, rows),
            Prose(text, soft=True)]  # fmt: skip


PAGE = ReportPage("scores", "Learning and forgetting", always, blocks)
