"""A report as Markdown, for a repository or a paper: the same blocks as the page's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from laura.report.blocks import (
    AnswerColumns,
    Block,
    Document,
    Figure,
    Fold,
    Link,
    Listing,
    Notice,
    Prose,
    Still,
    Subheading,
    Table,
    TableCell,
    Verbatim,
)
from laura.report.figures import FIGURES, DrawnChart
from laura.report.samples.text import SampleText


def document_text(document: Document, charts: Mapping[str, DrawnChart]) -> str:
    """The whole file."""
    told = " · ".join(f"{escaped(name)} **{escaped(value)}**" for name, value in document.facts)
    parts = [f"# {escaped(document.headline)}", f"Laura report · {escaped(document.kind)}", told]
    for page in document.pages:
        parts.append(f"## {escaped(page.title)}")
        parts += _blocks(page.blocks, charts)
    if document.absent:
        parts.append("## Not in this report")
        parts.append("\n".join(f"- **{escaped(t)}**: {escaped(r)}." for t, r in document.absent))
    parts += ["---", escaped(document.footer)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _blocks(blocks: Sequence[Block], charts: Mapping[str, DrawnChart]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Subheading():
                yield f"### {escaped(block.text)}"
            case Prose():
                yield escaped(block.text)
            case Notice():
                yield f"**{escaped(block.title)}**"
                yield "\n".join(f"- {escaped(sentence)}" for sentence in block.sentences)
            case Listing():
                yield "\n".join(f"- **{escaped(term)}** {escaped(t)}" for term, t in block.items)
            case Table():
                yield from _table(block)
            case Figure():
                yield from _figure(charts[block.chart])
            case Still():
                yield f"![{escaped(block.description)}]({block.file})"
            case Link():
                yield f"[{escaped(block.text)}]({block.file})"
            case Fold():
                yield f"### {escaped(block.title)}"
                yield from _blocks(block.blocks, charts)
            case Verbatim():
                yield fenced(block.text)
            case AnswerColumns():
                yield from _answers(block)


def _figure(chart: DrawnChart) -> Iterator[str]:
    yield f"### {escaped(chart.title)}"
    if not chart.panels:
        yield "Nothing to draw: the study holds no measured run for this chart."
        return
    yield f"![{escaped(chart.description)}]({FIGURES}/{chart.name}.svg)"
    yield escaped(chart.explanation)


def _table(block: Table) -> Iterator[str]:
    heads = [escaped(c.heading + (f" ({c.note})" if c.note else "")) for c in block.columns]
    rule = ["---:" if column.numeric else "---" for column in block.columns]
    rows = [heads, rule, *([_cell(cell) for cell in row] for row in block.rows)]
    yield f"*{escaped(block.caption)}*"
    yield "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(cell: TableCell) -> str:
    text = escaped(cell.text)
    if cell.code and re.fullmatch(r"[\w.-]+", cell.text):
        text = f"`{cell.text}`"
    return f"{text} ({escaped(cell.below)})" if cell.below else text


def _answers(block: AnswerColumns) -> Iterator[str]:
    words = ", ".join(f"{one.model} {one.word}" for one in block.item.answers)
    yield f"#### {escaped(block.item.heading)}: {escaped(words)}"
    yield from _texts(block.item.shared)
    for answer in block.item.answers:
        yield f"**{escaped(answer.model)}: {answer.word}**"
        yield from _texts(answer.texts)


def _texts(texts: Sequence[SampleText]) -> Iterator[str]:
    for text in texts:
        note = f" ({escaped(text.note)})" if text.note else ""
        yield f"{escaped(text.title)}{note}:"
        yield fenced(text.text)


def escaped(text: str) -> str:
    """Text on one line that Markdown takes as it is: no HTML, no table, no emphasis, no link.

    What stands between backticks stays code.
    """
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    told = "".join(
        part.replace("|", "\\|") if at % 2 else _plain(part) for at, part in enumerate(parts)
    )
    return re.sub(r"^([-+]|\d+[.)])(?=\s)", r"\\\1", told)


def _plain(text: str) -> str:
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, safe)
    return re.sub(r"([\\`|*_\[\]#~])", r"\\\1", text)


def fenced(text: str) -> str:
    """Text as a block of code, with a fence that nothing in it can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
