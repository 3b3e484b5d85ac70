"""A sample as a reader wants it: what is shown of it, under which titles, in which order.

Fields that Laura's tasks write come first, in a fixed order; whatever else a
sample holds follows under its own name. All text that comes out is harmless to
a terminal (see `visible`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeGuard

from laura.report.formats import ABSENT
from laura.report.visible import visible, visible_line
from laura.results.task_result import Item
from laura.results.text_table import table_lines

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# Field to title, in the order shown. What the question holds is the same for every model.
QUESTION = {
    "context": "Context",
    "prompt": "Prompt",
    "question": "Question",
}
ANSWER = {
    "text": "Output",
    "output": "Output",
    "strict": "Extracted answer, strict",
    "flexible": "Extracted answer, flexible",
    "extracted": "Extracted answer",
    "program": "Program",
    "code": "Program",
    "fault": "Error",
    "error": "Error",
}
SOLUTION = {
    "target": "Right answer",
    "answer": "Right answer",
    "test": "Tests",
    "tests": "Tests",
}
_HEADED = {"index", "sample", "passed", "correct"}  # the heading says these
_QUIET = {"fault", "error"}  # left out where there was none
_CUT = {"prompt", "context"}  # worked examples stand before what is asked
_CHOSEN = {"choices", "contexts", "loglikelihoods", "gold", "choice_characters"}
LINES_LEFT, CHARACTERS_LEFT = 12, 1500
SHORT = 60


@dataclass(frozen=True)
class SampleText:
    """A titled text.

    Attributes:
        title: What it is.
        text: Lines, harmless to a terminal.
        note: What was left out of it; empty where nothing was.
    """

    title: str
    text: str
    note: str = ""

    @property
    def fits_beside(self) -> bool:
        """Whether the text is short enough to stand beside its title."""
        return not self.note and len(self.text) <= SHORT and "\n" not in self.text


@dataclass(frozen=True)
class ModelAnswer:
    """What one model did with an item; `passed` is None where there is no verdict."""

    model: str
    passed: bool | None
    texts: list[SampleText]

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return {True: "passed", False: "failed", None: "no verdict"}[self.passed]


@dataclass(frozen=True)
class SamplePage:
    """One item, or one sample of it, of one or more models.

    Attributes:
        heading: Which.
        shared: What is the same for all of them: the question.
        answers: One a model.
    """

    heading: str
    shared: list[SampleText]
    answers: list[ModelAnswer]


def page(
    heading: str,
    models: Sequence[str],
    rows: Sequence[tuple[Item, bool | None]],
    *,
    metric: str = "",
    full: bool = False,
) -> SamplePage:
    """Lay out a sample.

    Args:
        heading: Which it is.
        models: Names of the models.
        rows: Each model's sample with its verdict.
        metric: The task's leading metric: `acc_norm` chooses by character.
        full: Also show the beginning of long prompts.
    """
    first = rows[0][0]
    # The question and its solution stand once where all models have the same.
    shared = {
        name: first[name]
        for name in (*QUESTION, *SOLUTION)
        if name in first and all(row.get(name) == first[name] for row, _ in rows)
    }
    answers = []
    for name, (row, passed) in zip(models, rows, strict=True):
        rest = {field: value for field, value in row.items() if field not in shared}
        texts = list(_texts(rest, _choices(row, metric), full))
        answers.append(ModelAnswer(visible_line(name), passed, texts))
    return SamplePage(heading, list(_texts(shared, None, full)), answers)


def _texts(row: Item, choices: SampleText | None, full: bool) -> Iterator[SampleText]:
    """The texts of a sample: known fields, unknown ones, then what is short in one line."""
    gone = _HEADED | _CHOSEN if choices else _HEADED
    left = {name: value for name, value in row.items() if name not in gone}
    for name, title in (QUESTION | ANSWER | SOLUTION).items():
        if name in left:
            value = left.pop(name)
            if value not in ("", None) or name not in _QUIET:
                yield _titled(title, value_text(value), name in _CUT and not full)
    if choices is not None:
        yield choices
    short = []
    for name, value in left.items():
        text = value_text(value)
        if "\n" in text or len(text) > SHORT:
            yield _titled(visible_line(name), text)
        else:
            short.append(f"{visible_line(name)} {visible(text)}")
    if short:
        yield SampleText("Also", ", ".join(short))


def value_text(value: Any) -> str:
    """A field's value as text: short lists and objects as JSON, others as an outline."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    try:
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list | dict) and (len(text) > SHORT or "\\n" in text):
            return "\n".join(_outline(value))
    except RecursionError:
        return "(nested too deeply to be shown)"
    return text


def _outline(value: list[Any] | dict[str, Any]) -> Iterator[str]:
    """A list or object line by line, each part's text on lines of its own, set in."""
    named = isinstance(value, dict)
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        mark = f"{visible_line(str(key))}:" if named else "-"
        lines = value_text(part).split("\n")
        if named and len(lines) > 1:
            yield mark
        else:
            yield f"{mark} {lines.pop(0)}".rstrip()
        yield from (f"  {line}" for line in lines)


def _titled(title: str, text: str, cut: bool = False) -> SampleText:
    """A text, of which `cut` keeps the end: its last lines, or characters where lines are long."""
    kept, note = text, ""
    if cut:
        kept = "\n".join(text.split("\n")[-LINES_LEFT:])[-CHARACTERS_LEFT:]
    if len(kept) < len(text):
        gone = text[: len(text) - len(kept)]
        lines = f"{gone.count(chr(10))} lines, " if "\n" in gone else ""
        note = f"cut: {lines}{len(gone):,} characters before this; --full shows them"
    return SampleText(title, visible(kept) or "(empty)", note)


def _choices(row: Item, metric: str) -> SampleText | None:
    """The choices with what the model gave each; None where the row has none.

    `>` marks the model's choice: the largest log-likelihood, or the largest a
    character where the task's leading metric is `acc_norm`.
    """
    scores = row.get("loglikelihoods")
    if not _is_numbers(scores):
        return None
    shares, gold, chosen = _shares(row, scores), row.get("gold"), chosen_place(row, metric)
    lines = []
    for place, score in enumerate(scores):
        marks = (">" if place == chosen else " ") + (" right" if place == gold else " " * 6)
        share = f"  {shares[place]:8.4f} a character" if shares else ""
        text = _choice_text(row, place, len(scores))
        lines.append(f"{marks}  {score:9.3f} nats{share}  {text}".rstrip())
    return SampleText("Choices (> the model's)", "\n".join(lines))


def _shares(row: Item, scores: list[float]) -> list[float] | None:
    """The log-likelihood of each choice a character; None where its size is not known."""
    sizes = row.get("choice_characters")
    if _is_numbers(sizes) and len(sizes) == len(scores) and 0 not in sizes:
        return [score / size for score, size in zip(scores, sizes, strict=True)]
    return None


def chosen_place(row: Item, metric: str) -> int | None:
    """Place of the model's choice; None where the row has none."""
    scores = row.get("loglikelihoods")
    if not _is_numbers(scores):
        return None
    shares = _shares(row, scores)
    led = shares if shares and metric == "acc_norm" else scores
    return max(range(len(scores)), key=led.__getitem__)


def _choice_text(row: Item, place: int, count: int) -> str:
    """Text of a choice: what differs between the choices, a beginning and an ending."""
    parts = []
    for name in ("contexts", "choices"):
        texts = row.get(name)
        if isinstance(texts, list) and len(texts) == count and isinstance(texts[place], str):
            parts.append(visible(texts[place]).replace("\n", "\n" + " " * 10))
    return " | ".join(dict.fromkeys(parts))


# ----- in a line or two, for the page on which readers look through the items -----

QUESTION_LEFT, ANSWER_LEFT, ANSWER_END = 600, 320, 100


def question_text(row: Item) -> str:
    """What is asked: its end where it is long, a gap where the choices differ in the middle."""
    contexts, choices = _strings(row.get("contexts")), _strings(row.get("choices"))
    if len(contexts) > 1:
        text = f"{_shared(contexts)}___{choices[0] if choices else ''}"
    else:
        known = [value_text(row[name]) for name in QUESTION if name in row]
        text = (known or contexts or [""])[0]
    text = text.strip().removeprefix("Question: ").removesuffix("Answer:").strip()
    return visible(text if len(text) <= QUESTION_LEFT else "… " + text[-QUESTION_LEFT:])


def choice_texts(row: Item) -> list[str]:
    """What may be answered; empty where the model writes its own."""
    contexts, choices = _strings(row.get("contexts")), _strings(row.get("choices"))
    if len(contexts) > 1:
        choices = [text.removeprefix(_shared(contexts)) for text in contexts]
    return [visible(text.strip()) for text in choices]


def _shared(texts: Sequence[str]) -> str:
    """The whole words with which all begin."""
    letters = takewhile(lambda alike: len(set(alike)) == 1, zip(*texts, strict=False))
    return texts[0][: texts[0].rfind(" ", 0, len(list(letters))) + 1]


def answer_text(row: Item, metric: str) -> str:
    """What a model answered: the choice it made, or the beginning and end of what it wrote."""
    chosen, choices = chosen_place(row, metric), choice_texts(row)
    if chosen is not None and chosen < len(choices):
        return choices[chosen]
    text = next((value_text(row[name]) for name in ANSWER if name in row), "").strip()
    if len(text) > ANSWER_LEFT + ANSWER_END:
        text = f"{text[:ANSWER_LEFT]} … {text[-ANSWER_END:]}"
    return visible(text)


def _strings(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _is_numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be divided and printed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def loss_lines(models: Sequence[str], rows: Sequence[Sequence[Item]]) -> Iterator[str]:
    """A table of documents with a loss, a line each.

    Args:
        models: Names.
        rows: For each document, its item of each model.
    """
    names = [visible_line(name) for name in models]
    heads = ["index", "tokens", *(["nats per token"] if len(names) == 1 else names)]
    heads += ["difference"] if len(names) == 2 else []
    if len(names) > 1:
        yield "nats per token"
    lines = [heads]
    for items in rows:
        values = [_per_token(item) for item in items]
        cells = [str(items[0].get("index")), value_text(items[0].get("tokens"))]
        cells += [ABSENT if value is None else f"{value:.4f}" for value in values]
        if len(values) == 2:
            before, after = values
            cells.append(ABSENT if before is None or after is None else f"{after - before:+.4f}")
        lines.append([visible_line(cell) for cell in cells])
    yield from table_lines(lines)


def _per_token(item: Item) -> float | None:
    nats, tokens = item.get("nats"), item.get("tokens")
    return nats / tokens if _is_number(nats) and _is_number(tokens) and tokens else None


# ----- for a terminal: as plain lines, or in colour with answers side by side -----

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
