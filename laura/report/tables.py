"""Arms with their scores: for every page that has them, and for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from laura.report import formats
from laura.report.arms import Group, final_groups, groups
from laura.report.blocks import Column, Table, TableCell, number, table, wide
from laura.report.formats import ABSENT
from laura.report.samples.find import BASE
from laura.report.study import Study
from laura.results.schema import ENERGY, MEAN, Summary, TaskFacts

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as RichTable


def measured(summary: Summary) -> list[TaskFacts]:
    """What a table has a column for: learning tasks, then measures of forgetting."""
    return [
        summary.task(name) for name in (*summary.measure.learning, *summary.forgetting_measures)
    ]


def score_rows(summary: Summary) -> list[Group]:
    """The base, then every arm at its best rate, one a budget; arms without one as a gap."""
    found = groups(summary, selected=True)
    by_arm = {arm.name: [g for g in found if g.arm == arm.name] for arm in summary.arms}
    rows = [one for arm, own in by_arm.items() for one in own or [Group(summary, arm)]]
    return [Group(summary, BASE), *rows, *(g for g in found if g.arm not in by_arm)]


def score_cell(task: TaskFacts, row: Group) -> TableCell:
    """The score, and below what was learnt or forgotten against the base."""
    score = formats.value(row.value(task.name), task)
    if not row.points:
        return TableCell(score)
    learnt = task.name in row.summary.measure.learning
    return TableCell(score, formats.moved(row.change(task.name), task, learnt))


def seed_count(row: Group) -> str:
    """How many seeds a row is of."""
    return ABSENT if row.is_base else str(len(row.seeds))


def score_column(summary: Summary, task: TaskFacts, counted: bool = False) -> Column:
    """A task's scores; `counted` says on how many items."""
    side = "learnt" if task.name in summary.measure.learning else "forgot"
    note = f"{side}, n = {task.n}" if counted and task.n else side
    heading = f"{task.short_title}, {formats.unit(task)}"
    return number(heading, partial(score_cell, task), note)


def final_scores(
    summary: Summary, name: str, caption: str, heading: str, remarks: dict[str, str]
) -> Table:
    """Arms at their best rate and largest budget with a remark on each.

    The leading task, then measures of forgetting.
    """
    names = [*([summary.primary] if summary.primary else []), *summary.forgetting_measures[:3]]
    found = final_groups(summary)
    columns = [
        Column("arm", lambda row: row.arm),
        wide(heading, lambda row: remarks[row.arm]),
        number("rate", lambda row: row.rate),
        number("seeds", seed_count),
        *(score_column(summary, summary.task(task)) for task in names),
    ]
    rows = [found.get(arm, Group(summary, arm)) for arm in remarks]
    return table(name, caption, columns, rows)


# ----- for a terminal -----

HEADING = 12  # letters in a line of a column's heading


def summary_table(study: Study) -> RenderableType:
    """The answer and the arms at their best rate."""
    from rich.console import Group as Stack
    from rich.text import Text

    judged = study.judgement
    parts: list[RenderableType] = [Text(study.answer, style="bold"), Text()]
    parts += [*_arms_table(study.summary), Text()]
    if judged is not None:
        parts += [Text(sentence) for sentence in judged.sentences]
        if judged.others:
            parts.append(Text("The report tells of the other arms, one by one.", style="dim"))
    for heading, sentences in (
        ("Caveats", judged.caveats if judged else []),
        ("Missing", study.gaps),
    ):
        if sentences:
            parts += [Text(f"\n{heading}", style="bold"), _listing(sentences)]
    return Stack(*parts)


def _arms_table(summary: Summary) -> list[RenderableType]:
    from rich.text import Text

    unit = summary.budget.unit
    columns = [
        Column("arm", lambda row: "\n".join(textwrap.wrap(row.arm, HEADING))),
        number("rate", lambda row: row.marked_rate.replace(", ", ",\n")),
        number(f"budget ({unit})", lambda row: row.facts["budget"].split()[0]),
        *_leading_columns(summary),
    ]
    needed = len(columns)
    columns += [number("seeds", seed_count), *_further_columns(summary)]
    rows, title = score_rows(summary), f"{summary.name}: arms at their best learning rate"
    drawn = _FittingTable(table("arms", title, columns, rows), needed)
    notes = ["± is one standard error."]
    if any(row.at_edge for row in rows):
        notes.append("* best rate at the end of the range tried: try further out.")
    return [drawn, Text(" ".join(notes), style="dim")]


def _leading_columns(summary: Summary) -> list[Column]:
    """The leading task, what was learnt and what was forgotten."""
    found = []
    for task in measured(summary):
        moved = partial(_moved, task)
        if task.name == summary.primary:
            heading = f"{task.short_title} ({formats.unit(task)})"
            found.append(number(heading, partial(_score, task)))
            found.append(number(f"learnt ({_unit(task, 'points')})", moved))
        elif task.name == MEAN:
            found.append(number(f"forgot ({_unit(task, 'points')})", moved))
    return found


def _further_columns(summary: Summary) -> list[Column]:
    """Losses and the like."""
    return [
        number(f"{task.short_title} ({_unit(task, '%')})", partial(_score, task))
        for task in measured(summary)
        if task.name in summary.forgetting_measures and task.name not in (MEAN, summary.primary)
    ]


def _unit(task: TaskFacts, share: str) -> str:
    return share if task.is_share else "nats" if "nats" in task.unit else task.unit


def _score(task: TaskFacts, row: Group) -> str:
    return score_cell(task, row).text


def _moved(task: TaskFacts, row: Group) -> str:
    return score_cell(task, row).below or ABSENT


def _listing(sentences: Sequence[str]) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    listing = RichTable.grid(padding=(0, 1))
    for sentence in sentences:
        listing.add_row(" -", Text(sentence))
    return listing


@dataclass(frozen=True)
class _FittingTable:
    """A table that leaves out its last columns where a terminal is too narrow for them.

    Attributes:
        shown: The table.
        needed: So many columns it always has.
    """

    shown: Table
    needed: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        endless = options.update(max_width=10_000)
        for count in range(len(self.shown.columns), self.needed - 1, -1):
            drawn = _rich_table(self._first(count))
            if console.measure(drawn, options=endless).maximum <= options.max_width:
                break
        drawn.rows[0].end_section = True  # the base stands apart
        yield drawn
        if left := [column.heading for column in self.shown.columns[count:]]:
            yield Text(f"Too wide for this terminal, see the report: {', '.join(left)}.", "dim")

    def _first(self, count: int) -> Table:
        rows = [row[:count] for row in self.shown.rows]
        return replace(self.shown, columns=self.shown.columns[:count], rows=rows)


def _rich_table(shown: Table) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    # Text, not str: a name may hold what rich would take for markup.
    drawn = RichTable(
        title=Text(shown.caption), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
    )
    for column in shown.columns:
        heading = Text("\n".join(textwrap.wrap(column.heading, HEADING)))
        drawn.add_column(heading, justify="right" if column.numeric else "left", overflow="fold")
    for row in shown.rows:
        drawn.add_row(*(Text(cell.text) for cell in row))
    return drawn


# ----- what `laura spectra` found -----

Matrices = Sequence[dict[str, Any]]
SPECTRA_NOTES = (
    "rank: directions that hold 90 % of the update's squared singular values; noise: that as a "
    "share of what independent noise of this shape needs; effective: Roy and Vetterli's rank; "
    "stable: energy over that of the first direction; norm: Frobenius, update over base; "
    "leading: share of the update's energy in the base's leading directions, left and right. Means "
    "over layers."
)


def _mean(values: Iterable[float | None], show: str) -> str:
    found = [value for value in values if value is not None]
    return format(fmean(found), show) if found else ABSENT


def _rank(one: dict[str, Any]) -> float:
    return float(one["rank"][ENERGY])


def _leading(one: dict[str, Any]) -> float | None:
    return one["leading_energy"] and float(one["leading_energy"]["both"])


def module_table(tuned: str, matrices: Matrices, counted: bool) -> Table:
    """One row a module type, means over its layers; what was asked beside the spectra last."""
    modules: dict[str, list[dict[str, Any]]] = {}
    for one in matrices:
        modules.setdefault(one["module"], []).append(one)

    def shapes(row: tuple[str, Matrices]) -> str:
        return ", ".join(sorted({"x".join(map(str, one["shape"])) for one in row[1]}))

    def of_noise(one: dict[str, Any]) -> float:
        return _rank(one) / float(one["noise_rank"][ENERGY])

    columns = [
        Column("module", lambda row: row[0]),
        number("shape", shapes),
        number("rank", lambda row: _mean(map(_rank, row[1]), ",.0f")),
        number("noise", lambda row: _mean(map(of_noise, row[1]), ".0%")),
        number("effective", lambda row: _mean((m["effective_rank"] for m in row[1]), ",.1f")),
        number("stable", lambda row: _mean((m["stable_rank"] for m in row[1]), ",.1f")),
        number("norm", lambda row: _mean((m["relative_frobenius"] for m in row[1]), ".2%")),
    ]
    if counted:
        columns.append(
            number("intruders", lambda row: _mean((m["intruders"] for m in row[1]), ".1f"))
        )
    if any(one.get("leading_energy") for one in matrices):
        columns.append(number("leading", lambda row: _mean(map(_leading, row[1]), ".2%")))
    title = f"Updates of {tuned}, by module"
    return table("modules", title, columns, modules.items())


def layer_table(matrices: Matrices) -> Table:
    """One row a layer: the update's rank at 90 % in every module."""
    ranks: dict[int, dict[str, list[float]]] = {}
    for one in matrices:
        ranks.setdefault(one["layer"], {}).setdefault(one["module"], []).append(_rank(one))

    def rank(module: str, row: tuple[int, dict[str, list[float]]]) -> str:
        return _mean(row[1].get(module, []), ",.0f")

    modules = dict.fromkeys(one["module"] for one in matrices)
    columns = [Column("layer", lambda row: str(row[0]))]
    columns += [number(module, partial(rank, module)) for module in modules]
    return table("layers", "Rank of the update at 90 %, by layer", columns, sorted(ranks.items()))


def spectra_tables(answer: dict[str, Any]) -> RenderableType:
    """By module and by layer, with the warnings beneath."""
    from rich.console import Group as Stack
    from rich.text import Text

    matrices, counted = answer["matrices"], bool(answer["settings"]["intruders"])
    by_module = _rich_table(module_table(answer["tuned"], matrices, counted))
    by_layer = _rich_table(layer_table(matrices))
    warnings = [Text(f"Mind: {warning}", style="yellow") for warning in answer["warnings"]]
    return Stack(by_module, Text(SPECTRA_NOTES, style="dim"), Text(), by_layer, *warnings)
