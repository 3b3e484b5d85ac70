"""Small functions of the micro laboratory, judged by unit tests, rows as HumanEval's.

The head and docstring are asked, the body is generated, greedily but where an extra
draws several; prompt, body and the row's `check` run as HumanEval's programs do, in a
process of their own and of a closed vocabulary only (see `sandbox/vocabulary.py`).
`measure.micro_prompt` says in which form they are asked, as for `micro_math`.

Source: the form is that of Chen et al. 2021, arXiv:2107.03374; with one greedy
sample its pass@1 is the share of functions that pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.evals.sandbox.vocabulary import ProgramRunner, refused
from laura.evals.scoring import (
    TaskSettings,
    conversation,
    drawn_words,
    row_fault,
    several,
    text_field,
    told,
)
from laura.results.task_result import Item

TASK = "micro_code"
METRICS = ("pass@1",)
NEW_TOKENS = 64
CHECK = "check"


@dataclass(frozen=True)
class FunctionQuestion:
    """One function to write.

    Attributes:
        index: Row number in the data file, from 0.
        requests: What the engine continues: one greedy answer, or an extra's samples.
        head: The program's beginning, which the answer continues.
        tests: The row's `check`.
        entry_point: Name of the function.
        k: The pass@k that an extra wants.
    """

    index: int
    requests: tuple[GenerateRequest, ...]
    head: str
    tests: str
    entry_point: str
    k: tuple[int, ...] = ()


def prepare(
    rows: Sequence[dict[str, Any]], ask: TaskSettings
) -> tuple[str, list[FunctionQuestion]]:
    """Version of the result, and the questions.

    Raises:
        DataError: a field is missing, or the tests are not of the closed vocabulary.
    """
    form, extra = ask.section.micro_prompt, ask.extra
    chat = ask.chat() if form == "chat" else None
    questions = []
    for index, row in enumerate(rows):
        fields = ("prompt", "test", "entry_point")
        head, tests, entry_point = (text_field(row, name, TASK, index) for name in fields)
        why = refused(tests, [CHECK])
        if why:
            raise row_fault(TASK, index, f"has tests that are not run: {why}")
        prompt = head if chat is None else chat(conversation(head))
        request = GenerateRequest(prompt, (), NEW_TOKENS)
        questions.append(FunctionQuestion(index, (request,), head, tests, entry_point))
    version = f"1; {form}; {NEW_TOKENS} new tokens{drawn_words(extra)}"
    return version, several(questions, TASK, extra)


def grades(
    questions: Sequence[FunctionQuestion], answers: Sequence[Sequence[GenerateAnswer]]
) -> Iterator[tuple[Item, list[Item]]]:
    """Run every answer; equal answers to one question run once.

    Yields:
        Of one answer the item {"index", "pass@1" (0 or 1), "tokens", "finish"} and the
        sample with the texts and what went wrong. Of several the item of
        `scoring.drawn_item` and such samples, each with its number and whether it passed.
    """
    with ProgramRunner() as runner:
        for question, own in zip(questions, answers, strict=True):
            known = functools.cache(functools.partial(_fault, runner, question))
            items: list[Item] = []
            samples: list[Item] = []
            for answer in own:
                fault = known(answer.text)
                item = {"index": question.index, "pass@1": int(not fault)}
                items.append({**item, "tokens": answer.tokens, "finish": answer.finish})
                texts = {"prompt": question.requests[0].prompt, "text": answer.text}
                samples.append({**items[-1], **texts, "fault": fault, "test": question.tests})
            yield told(question, items, samples, [not sample["fault"] for sample in samples])


def _fault(runner: ProgramRunner, question: FunctionQuestion, text: str) -> str:
    name = question.entry_point
    program = "\n".join([question.head + text, question.tests, f"{CHECK}({name})", ""])
    return runner.fault(program, [name, CHECK])
