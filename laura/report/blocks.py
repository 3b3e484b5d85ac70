"""What pages are made of; every block becomes HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from laura.report.formats import ABSENT
from laura.report.samples.text import SamplePage

Tone = Literal["", "good", "bad", "soft"]


@dataclass(frozen=True)
class Subheading:
    """A heading inside a page; `anchor` is what a link names."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Prose:
    """A paragraph; an explanation is set in softer ink."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Notice:
    """Sentences that must not be overlooked, under a heading of their own."""

    title: str
    sentences: Sequence[str]
    warns: bool = False


@dataclass(frozen=True)
class Listing:
    """Points, one below the other; each term is printed bold before its words."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: What stands in it.
        below: A second, softer line.
        title: More, on hovering.
        tone: Colour that goes with the words, never instead of them.
        order: What it sorts by; None for its text.
        code: Whether it is an identifier.
    """

    text: str
    below: str = ""
    title: str = ""
    tone: Tone = ""
    order: float | None = None
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Its name.
        read: Its cell, or the text of it, from what a row stands for.
        note: A second, smaller line of the heading.
        numeric: Whether it is set flush right.
        wide: Whether its texts may wrap.
        filter: Whether readers may choose one of its texts.
    """

    heading: str
    read: Callable[[Any], TableCell | str]
    note: str = ""
    numeric: bool = False
    wide: bool = False
    filter: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a caption; the first cell of a row is its heading.

    Attributes:
        name: What a link calls it, unique in the report.
        interactive: Whether readers may sort it, and filter it by words.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[TableCell]]
    interactive: bool = False


def table(
    name: str, caption: str, columns: Sequence[Column], rows: Iterable[Any], sorts: bool = False
) -> Table:
    """A table with a row for each of these, read column by column; `sorts` on a click."""

    def cell(column: Column, row: Any) -> TableCell:
        found = column.read(row)
        return found if isinstance(found, TableCell) else TableCell(found)

    cells = [[cell(column, row) for column in columns] for row in rows]
    return Table(name, caption, columns, cells, sorts)


def number(heading: str, read: Callable[[Any], TableCell | str], note: str = "") -> Column:
    """A column of numbers."""
    return Column(heading, read, note, numeric=True)


def wide(heading: str, read: Callable[[Any], TableCell | str]) -> Column:
    """A column of sentences."""
    return Column(heading, read, wide=True)


def sorted_by(
    value: float | None, show: Callable[[float], str] = str, below: str = ""
) -> TableCell:
    """A number as a cell that sorts by it; a gap for None."""
    return TableCell(ABSENT if value is None else show(value), below, order=value)


@dataclass(frozen=True)
class Figure:
    """A chart of the table of charts, by name."""

    chart: str


@dataclass(frozen=True)
class Still:
    """A picture that stands in a file, linked by Markdown."""

    file: str
    description: str


@dataclass(frozen=True)
class Link:
    """A link to another file of the folder."""

    file: str
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open when they are asked for."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Verbatim:
    """A text shown as it is, such as the recipe."""

    text: str


@dataclass(frozen=True)
class AnswerColumns:
    """A question with the answers of several models beside one another."""

    item: SamplePage


Block: TypeAlias = (
    Subheading | Prose | Notice | Listing | Table | Figure | Still | Link | Fold | Verbatim
    | AnswerColumns
)  # fmt: skip


@dataclass(frozen=True)
class LaidPage:
    """A page laid out: what a link calls it, its heading, and what stands on it."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        kind: What it is a report of, above the headline.
        title: Of the window.
        headline: What was found, in a sentence.
        facts: Name and value, in a line below.
        pages: In the order of the navigation.
        absent: Title and reason of the pages there is nothing for.
        footer: Last line.
    """

    kind: str
    title: str
    headline: str
    facts: Sequence[tuple[str, str]]
    pages: Sequence[LaidPage]
    absent: Sequence[tuple[str, str]]
    footer: str
