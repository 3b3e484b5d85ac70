"""What the arms cost, and how far each gets with how much."""

from __future__ import annotations

from typing import Any

from laura.report import formats
from laura.report.blocks import Block, Cell, Column, Figure, Heading, Prose, ReportPage, Table
from laura.report.study import Study
from laura.results.schema import Costs, NeededRow


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if study.costs is not None or study.analysis.efficiency:
        return ""
    return "the folder has no readable cost.json; `laura compare` writes it when a run has ended"


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found: list[Block] = []
    if study.costs is not None:
        found += [Figure("cost"), *_measured(study.costs)]
    if study.analysis.efficiency:
        found += _needed(study)
    return found


def _measured(costs: Costs) -> list[Block]:
    columns = [
        Column("arm"),
        Column("runs", numeric=True),
        Column("tokens per second", "median", numeric=True),
        Column("peak memory", "largest", numeric=True),
        Column("training FLOPs", "all runs", numeric=True),
        Column("training time", "all runs", numeric=True),
    ]
    rows = [
        [
            Cell(arm.arm),
            Cell(str(arm.runs), order=arm.runs),
            Cell(formats.count(arm.tokens_per_second), order=arm.tokens_per_second),
            Cell(formats.memory(arm.peak_memory_bytes), order=arm.peak_memory_bytes),
            Cell(formats.count(arm.flops), order=arm.flops),
            Cell(formats.duration(arm.train_seconds), order=arm.train_seconds),
        ]
        for arm in costs.arms
    ]
    told = []
    if costs.evaluation_seconds is not None:
        told.append(f"Evaluation took {formats.duration(costs.evaluation_seconds)}.")
    if costs.machine:
        parts = "; ".join(f"{name} {_words(value)}" for name, value in costs.machine.items())
        told.append(f"Machine: {parts}.")
    return [
        Heading("Costs on this machine", "costs"),
        Table("costs-table", "What each arm cost on this machine", columns, rows, True),
        *([Prose(" ".join(told), soft=True)] if told else []),
    ]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def _needed(study: Study) -> list[Block]:
    unit = study.analysis.efficiency[0].unit
    columns = [
        Column("arm"),
        Column("task", filter=True),
        Column("level", numeric=True),
        Column(f"{unit} needed", "95 % interval", numeric=True),
    ]
    rows = [
        [
            Cell(row.arm),
            Cell(study.summary.task(row.task).short_title),
            Cell(_level(study, row), order=row.level),
            _amount(row),
        ]
        for row in study.analysis.efficiency
    ]
    text = (
        "Read off each arm’s curve at its best rate, between the budgets that were measured. "
        "“At most” where the first budget was already beyond the level; “not reached” where the "
        "last was short of it."
    )
    caption = f"{unit.capitalize()} that each arm needs to reach a level"
    return [Heading("Sample efficiency", "efficiency"),
            Table("efficiency-table", caption, columns, rows, True),
            Prose(text, soft=True)]  # fmt: skip


def _level(study: Study, row: NeededRow) -> str:
    task = study.summary.task(row.task)
    return f"{row.level * task.scale:.{1 if task.is_share else 3}f} {formats.unit(task)}"


def _amount(row: NeededRow) -> Cell:
    if row.needed is None:
        return Cell("not reached")
    ends = formats.ends(row.interval, lambda end: formats.budget(end, row.unit))
    most = "at most " if row.at_most else ""
    return Cell(most + formats.budget(row.needed, row.unit), ends, order=row.needed)


PAGE = ReportPage("cost", "Cost", missing, blocks)
