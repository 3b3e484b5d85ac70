"""A sample as a reader wants it: what is shown of it, under which titles, in which order.

Fields that Laura's tasks write come first, in a fixed order; whatever else a
sample holds follows under its own name. All text that comes out is harmless to
a terminal (see `visible`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from laura.report.visible import visible, visible_line
from laura.results.task_result import Item

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
_TITLES = {**QUESTION, **ANSWER, **SOLUTION}
_HEADED = {"index", "sample", "passed", "correct"}  # the heading says these
_QUIET = {"fault", "error"}  # left out where there was none
_CUT = {"prompt", "context"}  # worked examples stand before what is asked
LINES_LEFT, CHARACTERS_LEFT = 12, 1500
SHORT = 60


@dataclass(frozen=True)
class Block:
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
class Answer:
    """What one model did with an item.

    Attributes:
        model: Its name.
        passed: The verdict; None where there is none.
        blocks: Its texts.
    """

    model: str
    passed: bool | None
    blocks: list[Block]

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return {True: "passed", False: "failed", None: "no verdict"}[self.passed]


@dataclass(frozen=True)
class Page:
    """One item, or one sample of it, of one or more models.

    Attributes:
        heading: Which.
        shared: What is the same for all of them: the question.
        answers: One a model.
    """

    heading: str
    shared: list[Block]
    answers: list[Answer]


def page(
    key: tuple[int, int],
    models: Sequence[str],
    rows: Sequence[tuple[Item, bool | None]],
    *,
    metric: str = "",
    several: bool = False,
    full: bool = False,
) -> Page:
    """Lay out a sample.

    Args:
        key: Index and sample number.
        models: Names of the models.
        rows: Each model's sample with its verdict.
        metric: The task's leading metric: `acc_norm` chooses by character.
        several: Whether items have several samples, so that the heading numbers them.
        full: Also show the beginning of long prompts.
    """
    index, sample = key
    shared = _shared([row for row, _ in rows])
    answers = []
    for name, (row, passed) in zip(models, rows, strict=True):
        rest = {field: value for field, value in row.items() if field not in shared}
        blocks = list(_blocks(rest, _choices(row, metric), full))
        answers.append(Answer(visible_line(name), passed, blocks))
    heading = f"item {index}, sample {sample}" if several else f"item {index}"
    return Page(heading, list(_blocks(shared, None, full)), answers)


def _shared(rows: Sequence[Item]) -> Item:
    """The fields of the question and its solution, where all models have the same."""
    first = rows[0]
    names = [name for name in (*QUESTION, *SOLUTION) if name in first]
    return {
        name: first[name] for name in names if all(row.get(name) == first[name] for row in rows)
    }


def _blocks(row: Item, choices: Block | None, full: bool) -> Iterator[Block]:
    """The blocks of a sample: known fields, unknown texts, then what is short in one line."""
    left = {name: value for name, value in row.items() if name not in _HEADED}
    if choices is not None:
        for name in ("choices", "contexts", "loglikelihoods", "gold", "choice_characters"):
            left.pop(name, None)
    for name, title in _TITLES.items():
        if name in left:
            value = left.pop(name)
            if value not in ("", None) or name not in _QUIET:
                yield _text_block(title, value, name in _CUT and not full)
    if choices is not None:
        yield choices
    short = []
    for name, value in left.items():
        text = _value_text(value)
        if "\n" in text or len(text) > SHORT:
            yield _text_block(visible_line(name), value, False)
        else:
            short.append(f"{visible_line(name)} {visible(text)}")
    if short:
        yield Block("Also", ", ".join(short))


def _value_text(value: Any) -> str:
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
        lines = _value_text(part).split("\n")
        if named and len(lines) > 1:
            yield mark
            yield from (f"  {line}" for line in lines)
        else:
            yield f"{mark} {lines[0]}".rstrip()
            yield from (f"  {line}" for line in lines[1:])


def _text_block(title: str, value: Any, cut: bool) -> Block:
    text = _value_text(value)
    kept = _last_lines(text) if cut else text
    note = ""
    if len(kept) < len(text):
        gone = text[: len(text) - len(kept)]
        lines = gone.count("\n")
        before = (
            f"{lines} lines, {len(gone):,} characters" if lines else f"{len(gone):,} characters"
        )
        note = f"cut: {before} before this; --full shows them"
    return Block(title, visible(kept) or "(empty)", note)


def _last_lines(text: str) -> str:
    """The end of a long text: its last lines, or characters where lines are long."""
    lines = text.split("\n")
    if len(lines) > LINES_LEFT:
        text = "\n".join(lines[-LINES_LEFT:])
    return text[-CHARACTERS_LEFT:]


def _choices(row: Item, metric: str) -> Block | None:
    """The choices with what the model gave each; None where the row has none.

    `>` marks the model's choice: the largest log-likelihood, or the largest a
    character where the task's leading metric is `acc_norm`.
    """
    scores = row.get("loglikelihoods")
    if not _is_numbers(scores):
        return None
    characters, gold = row.get("choice_characters"), row.get("gold")
    shares = None
    if _is_numbers(characters) and len(characters) == len(scores) and 0 not in characters:
        shares = [score / size for score, size in zip(scores, characters, strict=True)]
    led = shares if shares and metric == "acc_norm" else scores
    chosen = max(range(len(scores)), key=led.__getitem__)
    texts = [_choice_text(row, place, len(scores)) for place in range(len(scores))]
    lines = []
    for place, (score, text) in enumerate(zip(scores, texts, strict=True)):
        marks = (">" if place == chosen else " ") + (" right" if place == gold else " " * 6)
        share = f"  {shares[place]:8.4f} a character" if shares else ""
        lines.append(f"{marks}  {score:9.3f} nats{share}  {text}".rstrip())
    return Block("Choices (> the model's)", "\n".join(lines))


def _choice_text(row: Item, place: int, count: int) -> str:
    """Text of a choice: what differs between the choices, a beginning and an ending."""
    parts = []
    for name in ("contexts", "choices"):
        texts = row.get(name)
        if isinstance(texts, list) and len(texts) == count and isinstance(texts[place], str):
            parts.append(visible(texts[place]).replace("\n", "\n" + " " * 10))
    return " | ".join(dict.fromkeys(parts))


def _is_numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and bool(value) and all(_is_number(number) for number in value)


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
    widths = [max(len(head), 10) for head in heads]
    if len(names) > 1:
        yield "nats per token"
    yield "  ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True))
    for items in rows:
        values = [_per_token(item) for item in items]
        cells = [str(items[0].get("index")), _value_text(items[0].get("tokens"))]
        cells += ["–" if value is None else f"{value:.4f}" for value in values]
        if len(values) == 2:
            before, after = values
            cells.append("–" if before is None or after is None else f"{after - before:+.4f}")
        yield "  ".join(visible_line(c).rjust(w) for c, w in zip(cells, widths, strict=True))


def _per_token(item: Item) -> float | None:
    nats, tokens = item.get("nats"), item.get("tokens")
    return nats / tokens if _is_number(nats) and _is_number(tokens) and tokens else None


def plain_lines(shown: Page) -> Iterator[str]:
    """The page as lines that keep every text's own lines, for files and pipes."""
    if len(shown.answers) == 1:
        yield f"== {shown.heading}: {shown.answers[0].word} =="
    else:
        words = ", ".join(f"{answer.model} {answer.word}" for answer in shown.answers)
        yield f"== {shown.heading}: {words} =="
    yield from _plain_blocks(shown.shared)
    for answer in shown.answers:
        if len(shown.answers) > 1:
            yield f"-- {answer.model}: {answer.word} --"
        yield from _plain_blocks(answer.blocks)
    yield ""


def _plain_blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        if block.fits_beside:
            yield f"{block.title}: {block.text}"
            continue
        yield f"{block.title}:" + (f" [{block.note}]" if block.note else "")
        # Set in, so that no output can pass for a heading or a verdict.
        yield from (f"  {line}" for line in block.text.split("\n"))
