"""From an engine's answers to items: what all tasks of one kind share. Pure.

Definitions equal those of lm-eval 0.4.13 (`ConfigurableTask.process_results`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from laura.engine.requests import ScoreAnswer, ScoreRequest, TokenDocument
from laura.results.errors import DataError, DivergenceError
from laura.results.task_result import Item


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


def document_item(document: TokenDocument, nats: Sequence[float]) -> Item:
    """Sum one document's per-token numbers.

    Args:
        document: The document.
        nats: One number a supervised token.

    Returns:
        {"index", "nats" (sum), "tokens" (supervised), "bytes" (UTF-8, of the
        supervised text)}.

    Raises:
        DivergenceError: a number is not finite.
    """
    require_finite(nats, f"numbers of document {document.index}")
    return {
        "index": document.index,
        "nats": math.fsum(nats),
        "tokens": len(nats),
        "bytes": document.bytes,
    }


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
