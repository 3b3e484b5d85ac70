"""Every run: to be filtered and sorted, with the losses they had."""

from __future__ import annotations

from laura.report import formats
from laura.report.blocks import Block, Cell, Column, Figure, Heading, ReportPage, Table, always
from laura.report.gaps import STATE_WORDS
from laura.report.study import Study
from laura.results.schema import RunRow, Summary


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    return [Heading("All runs", "all-runs"), _table(study.summary), Figure("loss_curves")]


def _table(summary: Summary) -> Table:
    columns = [
        Column("run"),
        Column("arm", filter=True),
        Column("rate", numeric=True),
        Column("seed", numeric=True),
        Column("budget", numeric=True),
        Column("best rate"),
        Column("last loss", "nats per token", numeric=True),
        Column("state", filter=True),
        Column("reason", wide=True),
    ]
    rows = [_row(summary, run) for run in summary.runs]
    return Table("runs-table", "Every run of the study", columns, rows, True)


def _row(summary: Summary, run: RunRow) -> list[Cell]:
    loss = run.loss_curve[-1][1] if run.loss_curve else None
    return [
        Cell(run.id, code=True),
        Cell(run.arm),
        Cell(formats.rate(run.learning_rate), order=run.learning_rate),
        Cell(str(run.seed), order=run.seed),
        Cell(formats.budget_of(summary, run.budget), order=run.budget),
        Cell("yes" if run.selected else ""),
        Cell(formats.ABSENT if loss is None else f"{loss:.3f}", order=loss),
        Cell(STATE_WORDS.get(run.state, run.state), tone="good" if run.state == "done" else "bad"),
        Cell(run.reason),
    ]


PAGE = ReportPage("runs", "Runs", always, blocks)
