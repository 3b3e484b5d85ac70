"""What a page of the report is made of: each block is drawn as HTML and as Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from laura.report.sample_text import Page as SampleItem
from laura.report.study import Study

Tone = Literal["", "good", "bad", "soft"]


@dataclass(frozen=True)
class Heading:
    """A heading inside a page; `anchor` is what a link names."""

    kind: ClassVar[str] = "heading"
    text: str
    anchor: str


@dataclass(frozen=True)
class Prose:
    """A paragraph; an explanation is set in softer ink."""

    kind: ClassVar[str] = "prose"
    text: str
    soft: bool = False


@dataclass(frozen=True)
class Notice:
    """Sentences that must not be overlooked, under a heading of their own."""

    kind: ClassVar[str] = "notice"
    title: str
    sentences: Sequence[str]
    warns: bool = False


@dataclass(frozen=True)
class Listing:
    """Points, one below the other; `term` is printed bold before its words."""

    kind: ClassVar[str] = "listing"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Its name.
        note: A second, smaller line of it.
        numeric: Whether it is set flush right.
        wide: Whether its texts may wrap.
        filter: Whether readers may choose one of its texts.
    """

    heading: str
    note: str = ""
    numeric: bool = False
    wide: bool = False
    filter: bool = False


@dataclass(frozen=True)
class Cell:
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
class Table:
    """Rows of cells under a caption; the first cell of a row is its heading.

    Attributes:
        name: What a link calls it, unique in the report.
        interactive: Whether readers may sort it, and filter it by words.
    """

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    interactive: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart of the table of charts, by name."""

    kind: ClassVar[str] = "figure"
    chart: str


@dataclass(frozen=True)
class Still:
    """A picture that stands in a file too; `name` goes before the ids inside it."""

    kind: ClassVar[str] = "still"
    name: str
    file: str
    svg: str
    description: str


@dataclass(frozen=True)
class Link:
    """A link to another file of the folder."""

    kind: ClassVar[str] = "link"
    file: str
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open when they are asked for."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A text shown as it is, such as the recipe."""

    kind: ClassVar[str] = "source"
    text: str


@dataclass(frozen=True)
class Answers:
    """A question with the answers of several models beside one another."""

    kind: ClassVar[str] = "answers"
    item: SampleItem


Block: TypeAlias = (
    Heading | Prose | Notice | Listing | Table | Figure | Still | Link | Fold | Source | Answers
)


@dataclass(frozen=True)
class ReportPage:
    """One page of the report.

    Attributes:
        name: What a link calls it.
        title: Its heading, and its name in the navigation.
        missing: Why the study has nothing for it, and how to get it; empty where it has.
        blocks: What stands on it.
    """

    name: str
    title: str
    missing: Callable[[Study], str]
    blocks: Callable[[Study], list[Block]]


def always(study: Study) -> str:
    """For pages that every study has something for."""
    return ""
