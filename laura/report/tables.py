"""The arms at their best learning rate, as a terminal table and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laura.report import formats
from laura.report.groups import Group, selected_groups
from laura.report.study import Study
from laura.results.schema import MEAN, Summary, TaskFacts

if TYPE_CHECKING:
    from rich.console import RenderableType

BASE_NAME = "base"


@dataclass(frozen=True)
class Cell:
    """A score, and what was learnt or forgotten against the base (positive), both as text."""

    value: str
    moved: str


@dataclass(frozen=True)
class Line:
    """A row of the table: an arm at one budget, or the base.

    Attributes:
        arm: Name of the arm, or `base`.
        rate: Learning rate as text.
        budget: Budget as text.
        seeds: Number of seeds as text.
        cells: One a measured task.
        at_edge: The best rate is the lowest or highest one tried.
        runs: IDs behind the row.
    """

    arm: str
    rate: str
    budget: str
    seeds: str
    cells: list[Cell]
    at_edge: bool = False
    runs: tuple[str, ...] = ()


def measured(summary: Summary) -> list[TaskFacts]:
    """What the table has a column for: learning tasks, then measures of forgetting."""
    return [
        summary.task(name) for name in (*summary.measure.learning, *summary.forgetting_measures)
    ]


def lines(summary: Summary, tasks: list[TaskFacts]) -> list[Line]:
    """The base, then every arm at its best rate, one line a budget; arms without one as a gap."""
    absent = formats.ABSENT
    base = [Cell(formats.value(summary.base.scores.get(task.name), task), absent) for task in tasks]
    found = [Line(BASE_NAME, absent, absent, absent, base)]
    by_arm: dict[str, list[Group]] = {arm.name: [] for arm in summary.arms}
    for group in selected_groups(summary):
        by_arm.setdefault(group.arm, []).append(group)
    edges = {arm.name for arm in summary.arms if arm.edge}
    for arm, arm_groups in by_arm.items():
        if not arm_groups:
            found.append(Line(arm, absent, absent, "0", [Cell(absent, absent)] * len(tasks)))
        found += [_line(group, tasks, arm in edges) for group in arm_groups]
    return found


def _line(group: Group, tasks: list[TaskFacts], at_edge: bool) -> Line:
    learning = group.summary.measure.learning
    cells = [
        Cell(
            formats.value(group.value(task.name), task),
            formats.moved(group.change(task.name), task, task.name in learning),
        )
        for task in tasks
    ]
    return Line(
        arm=group.arm,
        rate=group.rate,
        budget=formats.budget_of(group.summary, group.budget),
        seeds=str(len(group.seeds)),
        cells=cells,
        at_edge=at_edge,
        runs=tuple(group.runs),
    )


@dataclass(frozen=True)
class _Column:
    """A column of the short table; `moved` says which half of the cell it shows."""

    heading: str
    place: int
    moved: bool

    def text(self, line: Line) -> str:
        cell = line.cells[self.place]
        return cell.moved if self.moved else cell.value


def _short_columns(summary: Summary, tasks: list[TaskFacts]) -> list[_Column]:
    """What fits a terminal: the leading task, what was forgotten, losses and the like."""
    found = []
    for place, task in enumerate(tasks):
        unit = "points" if task.is_share else "nats" if "nats" in task.unit else task.unit
        if task.name == summary.primary:
            found.append(_Column(f"{task.short_title} ({formats.unit(task)})", place, False))
            found.append(_Column(f"learnt ({unit})", place, True))
        elif task.name == MEAN:
            found.append(_Column(f"forgot ({unit})", place, True))
        elif task.name in summary.forgetting_measures:
            unit = "%" if task.is_share else unit
            found.append(_Column(f"{task.short_title} ({unit})", place, False))
    return found


def summary_table(study: Study) -> RenderableType:
    """The answer and the arms at their best rate, for a terminal."""
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
    from rich.table import Table
    from rich.text import Text

    tasks = measured(summary)
    shown = _short_columns(summary, tasks)
    title = Text(f"{summary.name}: arms at their best learning rate")
    table = Table(title=title, title_justify="left")
    for heading in ("arm", "rate", "budget", "seeds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for column in shown:
        table.add_column(Text(column.heading), justify="right")
    all_lines = lines(summary, tasks)
    for line in all_lines:
        rate = f"{line.rate} *" if line.at_edge else line.rate
        # Text, not str: a name may hold what rich would take for markup.
        texts = (line.arm, rate, line.budget, line.seeds, *(column.text(line) for column in shown))
        table.add_row(*(Text(text) for text in texts), end_section=line.arm == BASE_NAME)
    notes = ["± is one standard error."]
    if any(line.at_edge for line in all_lines):
        notes.append("* best rate at the end of the range tried: try further out.")
    return [table, Text(" ".join(notes), style="dim")]


def _listing(sentences: Sequence[str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    listing = Table.grid(padding=(0, 1))
    for sentence in sentences:
        listing.add_row(" -", Text(sentence))
    return listing


def markdown_table(summary: Summary) -> str:
    """The arms at their best rate as Markdown, for a README.

    Returns:
        Lines of a pipe table, with a closing newline.
    """
    tasks = measured(summary)
    shown = _short_columns(summary, tasks)
    rows = [["arm", "learning rate", "budget", "seeds", *(column.heading for column in shown)]]
    for line in lines(summary, tasks):
        scores = [column.text(line) for column in shown]
        rows.append([line.arm, line.rate, line.budget, line.seeds, *scores])
    heading, *body = ["| " + " | ".join(map(_cell, row)) + " |\n" for row in rows]
    rule = "| --- |" + " ---: |" * (len(rows[0]) - 1) + "\n"
    return heading + rule + "".join(body)


def _cell(text: str) -> str:
    """Text that cannot leave its cell or become HTML."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(character, safe)
    return " ".join(text.split())
