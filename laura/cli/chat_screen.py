"""`laura chat` on a terminal: records, answers as they grow, answers side by side.

Every text is a `Text` made visible: what a model wrote is neither rich's markup nor
obeyed by the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from laura.report.samples.text import beside
from laura.report.visible import visible, visible_line
from laura.serve.chatting import (
    Chat,
    Member,
    Reply,
    TextPart,
    Turn,
    comparable,
    difference,
    summary,
)

# Lines of each answer that are seen while it grows; whole ones are printed at the end.
GROWING_LINES = 12
# Marks as of wdiff, so that a difference is seen without colours too.
_MARKS = {"removed": ("[-", "-]", "red strike"), "added": ("{+", "+}", "green underline")}


def introduction(members: list[Member]) -> Text:
    """Who is asked, and what each adapter learned and forgot."""
    lines = Text()
    for one in members:
        lines.append(visible_line(one.name), style="bold")
        if one.is_base:
            lines.append("  the base")
        elif one.record is None:
            lines.append("  no laura.json: nobody recorded what it learned and forgot", style="dim")
        lines.append("\n")
        for line in _record_lines(one.record) if one.record else []:
            lines.append(f"  {visible_line(line)}\n")
        for warning in one.warnings:
            lines.append(f"  warning: {visible_line(warning)}\n", style="yellow")
    return lines


def _record_lines(record: dict[str, Any]) -> list[str]:
    """What was learned and forgotten, on what, and how many statements held."""
    lines = [f"{word} {_estimate(record[key])}" for word, key in _MEASURES]
    claims = Counter(dict(record["claims"]).values())
    if claims:
        told = ", ".join(f"{count} {verdict}" for verdict, count in claims.items())
        lines.append(f"claims: {told}")
    return lines


_MEASURES = (("learned", "learning"), ("forgot", "forgetting"))


def _estimate(found: dict[str, Any]) -> str:
    share = found["unit"] == "share"
    scale, digits, unit = (100, 1, "points") if share else (1, 3, found["unit"])
    low, high = (scale * end for end in found["interval"])
    return (
        f"{scale * found['value']:+.{digits}f} ± {scale * found['stderr']:.{digits}f} {unit} on "
        f"{', '.join(found['tasks'])}, {100 * found['level']:.3g} % interval {low:.{digits}f} to "
        f"{high:.{digits}f}, seeds: {found['seeds']}"
    )


def drawn(chat: Chat, turn: Turn, width: int) -> RenderableType:
    """The answers of a turn, those of adapters with what differs from the base's.

    Args:
        chat: The conversation.
        turn: Of it.
        width: Of the terminal, in cells.
    """
    base = turn.replies.get(chat.base or "")
    bodies = [Group(*_answer(reply, base)) for reply in turn.replies.values()]
    return beside([_title(name) for name in turn.replies], bodies, width)


def _answer(reply: Reply, base: Reply | None) -> Iterator[RenderableType]:
    yield Text(visible(reply.text), overflow="fold")
    yield Text(_state(reply), style="red" if reply.error else "dim")
    if base is not None and comparable(base, reply):
        pieces = difference(base.text, reply.text)
        yield Text(summary(pieces), style="cyan")
        if any(piece.kind != "same" for piece in pieces):
            yield _marked(pieces)
    yield ""


def _marked(pieces: list[TextPart]) -> Text:
    text = Text(overflow="fold")
    for piece in pieces:
        start, end, style = _MARKS.get(piece.kind, ("", "", ""))
        words = visible(piece.text)
        space = words[: len(words) - len(words.lstrip())] if start else ""
        text.append(space).append(f"{start}{words.removeprefix(space)}{end}", style=style)
    return text


def _state(reply: Reply) -> str:
    if reply.error:
        return visible(f"failed: {reply.error}")
    words = {"stopped": "stopped", "length": "cut at --max-tokens"}.get(reply.finish or "", "")
    tokens = "" if reply.tokens is None else f"{reply.tokens} tokens"
    return ", ".join(filter(None, [words, tokens]))


def _title(name: str) -> Text:
    return Text(visible_line(name), style="bold")


@contextmanager
def growing(console: Console, turn: Turn) -> Iterator[None]:
    """Within the block: the last lines of each answer as they are written; on a terminal only."""
    if not console.is_terminal:
        yield
        return

    def tails() -> RenderableType:
        columns = max(1, console.width // len(turn.replies) - 1)
        bodies = [_tail(reply, console, columns) for reply in turn.replies.values()]
        return beside([_title(name) for name in turn.replies], bodies, console.width)

    with Live(console=console, get_renderable=tails, transient=True, refresh_per_second=8):
        yield


def _tail(reply: Reply, console: Console, width: int) -> Text:
    if not reply.text and reply.finish is None:
        return Text("…", style="dim")
    lines = Text(visible(reply.text), overflow="fold").wrap(console, width)
    return Text("\n").join(lines[-GROWING_LINES:])
