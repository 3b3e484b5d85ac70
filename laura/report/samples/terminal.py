"""Laid-out samples for a terminal: as plain lines, or in colour with answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from laura.report.samples.text import ModelAnswer, SamplePage, SampleText

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# A narrower column than this breaks most lines of a program.
NARROWEST = 40
_COLOURS = {True: "green", False: "red", None: "dim"}


def plain_lines(shown: SamplePage) -> Iterator[str]:
    """The page as lines that keep every text's own lines, for files and pipes."""
    alone = len(shown.answers) == 1
    words = ", ".join(a.word if alone else f"{a.model} {a.word}" for a in shown.answers)
    yield f"== {shown.heading}: {words} =="
    yield from _plain(shown.shared)
    for answer in shown.answers:
        if not alone:
            yield f"-- {answer.model}: {answer.word} --"
        yield from _plain(answer.texts)
    yield ""


def _plain(texts: Sequence[SampleText]) -> Iterator[str]:
    for text in texts:
        if text.fits_beside:
            yield f"{text.title}: {text.text}"
            continue
        yield f"{text.title}:" + (f" [{text.note}]" if text.note else "")
        # Set in, so that no output can pass for a heading or a verdict.
        yield from (f"  {line}" for line in text.text.split("\n"))


def drawn(shown: SamplePage, width: int) -> RenderableType:
    """A page, its answers in columns where `width` (in cells) has room for them.

    Every text is a `Text`: what a model wrote is never taken for rich's markup.
    """
    from rich.console import Group
    from rich.rule import Rule
    from rich.text import Text

    title = Text(shown.heading, style="bold")
    if len(shown.answers) == 1:
        answer = shown.answers[0]
        title.append_text(_verdict(answer))
        return Group(Rule(title, align="left"), *_drawn(shown.shared), *_drawn(answer.texts), "")
    names = [Text(a.model, style="bold").append_text(_verdict(a)) for a in shown.answers]
    answers = beside(names, [Group(*_drawn(a.texts)) for a in shown.answers], width)
    return Group(Rule(title, align="left"), *_drawn(shown.shared), answers, "")


def beside(titles: Sequence[Text], bodies: Sequence[RenderableType], width: int) -> RenderableType:
    """Bodies under their titles: in columns where `width` (in cells) has room for them."""
    from rich.console import Group
    from rich.table import Table

    if width // len(titles) < NARROWEST:
        return Group(*(part for pair in zip(titles, bodies, strict=True) for part in pair))
    table = Table(expand=True, box=None, padding=(0, 1, 0, 0), show_edge=False)
    for title in titles:
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(*bodies)
    return table


def _verdict(answer: ModelAnswer) -> Text:
    from rich.text import Text

    return Text(": ").append(answer.word, style=f"bold {_COLOURS[answer.passed]}")


def _drawn(texts: Sequence[SampleText]) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for text in texts:
        title = Text(text.title, style="cyan")
        if text.fits_beside:
            parts.append(title.append(f"  {text.text}", style="default"))
            continue
        if text.note:
            title.append(f"  [{text.note}]", style="dim")
        parts += [title, Padding(Text(text.text, overflow="fold"), (0, 0, 0, 2), expand=False)]
    return parts
