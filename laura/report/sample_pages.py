"""Samples drawn for a terminal: colours, and the answers of models side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from laura.report.sample_text import Answer, Block, Page

# A narrower column than this breaks most lines of a program.
NARROWEST = 40
_COLOURS = {True: "green", False: "red", None: "dim"}


def drawn(shown: Page, width: int) -> RenderableType:
    """A page, its answers in columns where `width` (in cells) has room for them.

    Every text is a `Text`: what a model wrote is never taken for rich's markup.
    """
    title = Text(f"{shown.heading}", style="bold")
    if len(shown.answers) == 1:
        answer = shown.answers[0]
        title.append_text(_verdict(answer, ": "))
        return Group(Rule(title, align="left"), *_drawn(shown.shared), *_drawn(answer.blocks), "")
    parts: list[RenderableType] = [Rule(title, align="left"), *_drawn(shown.shared)]
    names = [_name(answer) for answer in shown.answers]
    parts.append(beside(names, [Group(*_drawn(a.blocks)) for a in shown.answers], width))
    return Group(*parts, "")


def beside(titles: Sequence[Text], bodies: Sequence[RenderableType], width: int) -> RenderableType:
    """Bodies under their titles: in columns where `width` (in cells) has room for them."""
    if width // len(titles) < NARROWEST:
        return Group(*(part for pair in zip(titles, bodies, strict=True) for part in pair))
    table = Table(expand=True, box=None, padding=(0, 1, 0, 0), show_edge=False)
    for title in titles:
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(*bodies)
    return table


def _name(answer: Answer) -> Text:
    return Text(answer.model, style="bold").append_text(_verdict(answer, ": "))


def _verdict(answer: Answer, before: str) -> Text:
    return Text(before).append(answer.word, style=f"bold {_COLOURS[answer.passed]}")


def _drawn(blocks: Sequence[Block]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for block in blocks:
        title = Text(block.title, style="cyan")
        if block.fits_beside:
            parts.append(title.append(f"  {block.text}", style="default"))
            continue
        if block.note:
            title.append(f"  [{block.note}]", style="dim")
        parts += [title, Padding(Text(block.text, overflow="fold"), (0, 0, 0, 2), expand=False)]
    return parts
