"""MBPP: 500 small programs to write from a sentence and three asserts, judged by the asserts.

How it is asked. `plain` is lm-eval's prompt: worked problems (rows 2, 3 and 4 of the
data, its `prompt` split), then the problem and `[BEGIN]`, continued until `[DONE]`; the
answer is the code. `chat` puts the words of lm-eval's `mbpp_instruct` into the model's
chat template, worked problems as earlier turns whose answers are fenced, and the code
is taken out of the answer (`fenced`). The asserts are shown, as in the paper.

The program is the code, the row's `test_setup_code`, and its asserts. lm-eval leaves
the setup out, so it fails every answer to the one test row that has one (task_id 367);
on all other rows the programs are the same. The challenge tests are not used.

Source: Austin et al. 2021, arXiv:2108.07732; prompt and stop text of lm-eval 0.4.13
(tasks/mbpp/mbpp.yaml, version 1.0, and mbpp_instruct.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from laura.evals.code import CodeQuestion, drawn, fenced, grades, metrics, sample_requests
from laura.evals.sandbox import require_sandbox
from laura.evals.scoring import Chat, TaskSettings, conversation, row_fault, text_field, text_list
from laura.recipe.sections import MeasureSection
from laura.results.errors import DataError

__all__ = ["METRICS", "grades", "metrics", "prepare"]

TASK = "mbpp"
METRICS = ("pass@1",)
STOP = ("[DONE]",)
SHOT_SPLIT = "prompt"
FIRST_SHOT = 1  # place of task_id 2: lm-eval shows 2, 3 and 4, as the paper does
SHOWN_TESTS = 3
PLAIN = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass "
    "these tests:\n\n{tests}\n[BEGIN]\n"
)
CHAT = (
    "You are an expert Python programmer, and here is your task:\n{text}\nYour code should pass "
    "these tests:\n{tests}"
)


def prepare(rows: Sequence[dict[str, Any]], ask: TaskSettings) -> tuple[str, list[CodeQuestion]]:
    """Version of the result, and the questions.

    Raises:
        SandboxError: this machine cannot confine a program; nothing is generated then.
        DataError: a field is missing, there are fewer worked problems than shots, or
            the model has no chat template and `chat` is asked for.
    """
    require_sandbox()
    section = ask.section
    chat = ask.chat() if section.code_prompt == "chat" else None
    worked = _worked(ask)
    questions = [_question(row, index, section, worked, chat) for index, row in enumerate(rows)]
    return f"1.0; {section.mbpp_shots} shots; {drawn(section)}", questions


def _question(
    row: dict[str, Any],
    index: int,
    section: MeasureSection,
    worked: list[tuple[dict[str, Any], str]],
    chat: Chat | None,
) -> CodeQuestion:
    _check(row, index, "test")
    setup = row.get("test_setup_code")
    before = [text_field(row, "test_setup_code", f"{TASK} test", index)] if setup else []
    tests = "\n".join([*before, *row["test_list"]])
    if chat is None:
        shots = "".join(f"{_asked(PLAIN, shot)}{code}\n[DONE]\n\n" for shot, code in worked)
        requests = sample_requests(shots + _asked(PLAIN, row), STOP, TASK, index, section)
    else:
        turns = [(_asked(CHAT, shot), f"```python\n{code}\n```") for shot, code in worked]
        prompt = chat(conversation(_asked(CHAT, row), turns))
        requests = sample_requests(prompt, (), TASK, index, section)
    code = str if chat is None else fenced  # a plain answer is code and nothing else
    tested, k = _defined(row, index), tuple(section.code_k)
    return CodeQuestion(index, row["task_id"], requests, code, tests, tested, k)


def _defined(row: dict[str, Any], index: int) -> tuple[str, ...]:
    """What the row's own solution defines: the names that tests may ask an answer for."""
    code = text_field(row, "code", f"{TASK} test", index)
    found = re.findall(r"^(?:def|class)\s+(\w+)|^(\w+)\s*=(?!=)", code, re.MULTILINE)
    return tuple(dict.fromkeys(name or assigned for name, assigned in found))


def _worked(ask: TaskSettings) -> list[tuple[dict[str, Any], str]]:
    """The worked problems, each with its code."""
    shots = ask.section.mbpp_shots
    rows = ask.rows(SHOT_SPLIT)[FIRST_SHOT : FIRST_SHOT + shots] if shots else []
    if len(rows) < shots:
        raise DataError(
            f"{TASK}: {shots} worked examples are wanted but the {SHOT_SPLIT} split has "
            f"{len(rows)} rows after its first; lower measure.mbpp_shots or give the whole file"
        )
    for place, row in enumerate(rows, FIRST_SHOT):
        _check(row, place, SHOT_SPLIT)
    where = f"{TASK} {SHOT_SPLIT}"
    return [(row, text_field(row, "code", where, i)) for i, row in enumerate(rows, FIRST_SHOT)]


def _asked(form: str, row: dict[str, Any]) -> str:
    return form.format(text=row["text"], tests="\n".join(row["test_list"][:SHOWN_TESTS]))


def _check(row: dict[str, Any], index: int, split: str) -> None:
    where = f"{TASK} {split}"
    text_field(row, "text", where, index)
    tests = text_list(row.get("test_list"), "test_list", where, index)
    if len(tests) < SHOWN_TESTS:
        raise row_fault(where, index, f"needs {SHOWN_TESTS} tests or more, came {len(tests)}")
    task_id = row.get("task_id")
    if isinstance(task_id, bool) or not isinstance(task_id, int):
        raise row_fault(where, index, f"needs task_id as a whole number, came {task_id!r}")
