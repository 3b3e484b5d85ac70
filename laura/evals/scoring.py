"""From rows to requests and from an engine's answers to items: what tasks share. Pure, no torch.

Of a multiple-choice question the definitions equal lm-eval 0.4.13's
(`ConfigurableTask.process_results`). Of several answers to one question the question
stays the unit: its share of right answers is its value (pass@1), and the standard error
is over questions, as in `statistics.clustered_mean`. pass@k is the unbiased estimate
from the question's own answers (`statistics.pass_at_k`).

Source: Chen et al. 2021, arXiv:2107.03374, for pass@k.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from laura.engine.requests import GenerateRequest, ScoreAnswer, ScoreRequest, TokenDocument
from laura.recipe.sections import Extra, MeasureSection, pass_names
from laura.results.errors import DataError, DivergenceError
from laura.results.statistics import pass_at_k
from laura.results.task_result import Item

Message = dict[str, str]
Adapters = Sequence[str | None]
Chat = Callable[[list[Message]], str]
"""Turns a conversation into the text after which the model writes its next answer."""


@dataclass(frozen=True)
class TaskSettings:
    """How a generation task is asked.

    Attributes:
        section: The recipe's `measure` section.
        rows: The task's rows of another split, such as those worked examples come from.
        chat: Gives the model's chat form; an error where it has none, so it is
            only called where it is wanted.
        extra: What an extra wants beyond the plain task: several samples.
    """

    section: MeasureSection
    rows: Callable[[str], Sequence[dict[str, Any]]]
    chat: Callable[[], Chat]
    extra: Extra | None = None


@dataclass(frozen=True)
class TaskMeasurement:
    """What a task found on one model.

    Attributes:
        items: One an item: {"index", each metric's number or, of a loss, what is summed}.
        samples: What is kept beside them: texts, verdicts.
        directions: Metric to whether higher is better; the first one leads.
        left_out: Metrics of the task's that are not offered, each with the reason.
    """

    items: list[Item]
    samples: list[Item]
    directions: dict[str, bool]
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskPlan:
    """A task made ready: what it covers, and the work itself.

    Attributes:
        name: Name of the result and of its file.
        title: Name for bars and tables.
        version: Version of the result.
        covers: What items a finished result must have: each index, with its tokens where
            it is a document with a loss.
        measure: Does the work on an engine, for several of its adapters (None: the
            model itself); one finding each.
        requests: What is asked of one model, where that is known before.
    """

    name: str
    title: str
    version: str
    covers: Sequence[tuple[int, int | None]]
    measure: Callable[[Any, Adapters], list[TaskMeasurement]]
    requests: Sequence[Any] = ()


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with choices, one scoring request a choice.

    Attributes:
        index: Row number in the data file, from 0.
        requests: One a choice, in the data's order.
        gold: Which choice is right, from 0.
        choice_characters: Characters (not bytes, not tokens) of each choice
            without the blank before it: what `acc_norm` divides by.
    """

    index: int
    requests: tuple[ScoreRequest, ...]
    gold: int
    choice_characters: tuple[int, ...]


def conversation(asked: str, worked: Sequence[tuple[str, str]] = ()) -> list[Message]:
    """A user's question, with worked ones and their answers as earlier turns."""
    turns: list[Message] = []
    for question, answer in worked:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*turns, {"role": "user", "content": asked}]


def row_fault(task: str, index: int, problem: str) -> DataError:
    """The error of a row that cannot be measured; `index` counts rows from 0."""
    return DataError(
        f"{task}: row {index} (counted from 0) {problem}; mend the row or point --data-dir at an "
        "undamaged copy"
    )


def text_field(row: dict[str, Any], name: str, task: str, index: int) -> str:
    """A field of a row that must be text.

    Raises:
        DataError: the field is absent or not text.
    """
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(value, str):
        return value
    if not isinstance(row, dict):
        raise row_fault(task, index, f"is {type(row).__name__}, not an object")
    came = f"came {value!r}" if name in row else f"its fields are {', '.join(map(str, row))}"
    raise row_fault(task, index, f"needs {name!r} as text, {came}")


def text_list(value: Any, name: str, task: str, index: int) -> list[str]:
    """A value of a row that must be a list of at least two non-empty texts.

    Raises:
        DataError: it is not.
    """
    if (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(text, str) and text for text in value)
    ):
        return list(value)
    raise row_fault(
        task, index, f"needs {name!r} as a list of two or more non-empty texts, came {value!r}"
    )


def choice_item(
    question: ChoiceQuestion, answers: Sequence[ScoreAnswer], metrics: Sequence[str], leading: str
) -> Item:
    """Grade one question.

    `acc` is 1 when the right choice has the largest log-likelihood, `acc_norm`
    when it has the largest log-likelihood per character; the first of equals
    wins, as in numpy's argmax.

    Args:
        question: The question.
        answers: One a request.
        metrics: Which of `acc`, `acc_norm` the task has.
        leading: The metric that `correct` repeats.

    Returns:
        {"index", "correct", "gold", "loglikelihoods" (nats), "choice_characters",
        and 0 or 1 for each metric}.

    Raises:
        DivergenceError: a log-likelihood is not finite.

    Source:
        lm-eval 0.4.13, lm_eval/api/task.py.
    """
    loglikelihoods = [answer.loglikelihood for answer in answers]
    require_finite(loglikelihoods, f"log-likelihoods of item {question.index}")
    per_character = [
        value / characters
        for value, characters in zip(loglikelihoods, question.choice_characters, strict=True)
    ]
    marks = {
        "acc": int(_largest(loglikelihoods) == question.gold),
        "acc_norm": int(_largest(per_character) == question.gold),
    }
    return {
        "index": question.index,
        "correct": bool(marks[leading]),
        "gold": question.gold,
        "loglikelihoods": loglikelihoods,
        "choice_characters": list(question.choice_characters),
        **{name: marks[name] for name in metrics},
    }


def choice_sample(question: ChoiceQuestion, item: Item) -> Item:
    """What was asked of one question, beside its item.

    Returns:
        The item with "choices" (the continuations) and "context", or "contexts" where
        each choice has its own.
    """
    contexts = [request.context for request in question.requests]
    same = len(set(contexts)) == 1
    asked: Item = {"context": contexts[0]} if same else {"contexts": contexts}
    choices = [request.continuation for request in question.requests]
    return {"index": question.index, **asked, "choices": choices, **item}


def document_items(
    documents: Sequence[TokenDocument], nats: Sequence[Sequence[float]]
) -> list[Item]:
    """Sum each document's per-token numbers.

    Args:
        documents: What was measured.
        nats: For each document one number a supervised token.

    Returns:
        One item a document: {"index", "nats" (sum), "tokens" (supervised), "bytes"
        (UTF-8, of the supervised text)}.

    Raises:
        DivergenceError: a number is not finite.
    """
    items: list[Item] = []
    for document, own in zip(documents, nats, strict=True):
        require_finite(own, f"numbers of document {document.index}")
        sums = {"nats": math.fsum(own), "tokens": len(own), "bytes": document.bytes}
        items.append({"index": document.index, **sums})
    return items


def require_finite(numbers: Sequence[float], name: str) -> None:
    """Refuse the numbers of a model that left the finite ones.

    Raises:
        DivergenceError: a number is NaN or infinite.
    """
    bad = next((number for number in numbers if not math.isfinite(number)), None)
    if bad is not None:
        raise DivergenceError(
            f"the {name} hold {bad}: the model's weights or activations are not finite, so it "
            "cannot be measured; train again with a lower learning rate"
        )


def _largest(numbers: Sequence[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)


def several(questions: Sequence[Any], task: str, extra: Extra | None) -> list[Any]:
    """Questions of one greedy request each, as they are or asked as often as an extra wants."""
    if extra is None:
        return list(questions)
    drawn = (extra.samples, extra.temperature, extra.top_p)
    return [
        replace(one, requests=sampled(one.requests[0], task, one.index, *drawn), k=tuple(extra.k))
        for one in questions
    ]


def sampled(
    request: GenerateRequest, task: str, index: int, samples: int, temperature: float, top_p: float
) -> tuple[GenerateRequest, ...]:
    """One request a sample.

    Seeds come from the task, the row and the sample's number alone: every model
    draws with the same ones, whatever else is measured.
    """
    drawn = replace(request, temperature=temperature, top_p=top_p)
    return tuple(replace(drawn, seed=seed(task, index, number)) for number in range(samples))


def seed(task: str, index: int, sample: int) -> int:
    """Seed of a question's sample: 48 bits of the SHA-256 of `TASK/ROW/SAMPLE`."""
    digest = hashlib.sha256(f"{task}/{index}/{sample}".encode()).digest()
    return int.from_bytes(digest[:6])


def drawn_words(extra: Extra | None) -> str:
    """How answers are drawn, to be added to a result's version; nothing for one greedy answer."""
    if extra is None:
        return ""
    return (
        f"; {extra.samples} samples at temperature {extra.temperature:g}, "
        f"top_p {extra.top_p:g}; {', '.join(pass_names(extra.k))}"
    )


def drawn_item(index: int, passed: Sequence[bool], k: Sequence[int], tokens: int) -> Item:
    """What is told of several answers to one question.

    Args:
        index: Row number in the data file.
        passed: Whether each answer is right.
        k: The pass@k that are told beside pass@1.
        tokens: New tokens of all answers.

    Returns:
        {"index", "samples" (n), "passes" (c), "correct" (all are right), "pass@1"
        (c / n), further "pass@k", "tokens"}.
    """
    n, passes = len(passed), sum(passed)
    return {
        "index": index,
        "samples": n,
        "passes": passes,
        "correct": passes == n,
        **{f"pass@{one}": pass_at_k(n, passes, one) for one in sorted({1, *k})},
        "tokens": tokens,
    }


def told(
    question: Any, items: Sequence[Item], samples: Sequence[Item], passed: Sequence[bool]
) -> tuple[Item, list[Item]]:
    """Item and samples of a question from those of its answers.

    Returns:
        Of one greedy answer its own. Of several `drawn_item`, and the samples, each with
        its number and whether it passed.
    """
    if len(question.requests) == 1:
        return items[0], list(samples)
    tokens = sum(item["tokens"] for item in items)
    return drawn_item(question.index, passed, question.k, tokens), [
        {**sample, "sample": number, "passed": right}
        for number, (sample, right) in enumerate(zip(samples, passed, strict=True))
    ]
