"""The micro laboratory's generation tasks: how they ask, and how they grade."""

from __future__ import annotations

from typing import Any

import pytest

from laura.engine.requests import GenerateAnswer
from laura.evals.asking import Ask
from laura.evals.tasks import gsm8k, load, micro_code, micro_math
from laura.micro.targets import rows, running_text
from laura.recipe.sections import MeasureSection
from laura.results.errors import DataError


def ask(form: str) -> Ask:
    section = MeasureSection(micro_prompt=form)  # type: ignore[arg-type]
    return Ask(section, lambda split: [], lambda: lambda turns: f"<{turns[-1]['content']}>")


@pytest.mark.parametrize(("name", "domain"), [("micro_math", "math"), ("micro_code", "code")])
def test_text_form_asks_the_beginning_of_the_running_text(name: str, domain: Any) -> None:
    data = rows(domain, "test", 20)
    version, questions = load(name).prepare(data, ask("text"))
    other, chats = load(name).prepare(data, ask("chat"))
    assert version != other
    for row, question, chat in zip(data, questions, chats, strict=True):
        assert running_text(row).startswith(question.requests[0].prompt)
        assert chat.requests[0].prompt == f"<{row['question' if domain == 'math' else 'prompt']}>"
        rest = running_text(row).removeprefix(question.requests[0].prompt)
        right = GenerateAnswer(rest, 9, "end")
        [(item, [sample])] = load(name).grades([question], [[right]])
        assert item[load(name).METRICS[0]] == 1 and item["index"] == question.index
        assert sample["text"] == rest


def test_math_is_graded_as_gsm8k() -> None:
    data = rows("math", "test", 3)
    _, questions = micro_math.prepare(data, ask("chat"))
    texts = ["#### 1", "no number", data[2]["answer"]]
    answers = [GenerateAnswer(text, 3, "end") for text in texts]
    found = list(micro_math.grades(questions, [[answer] for answer in answers]))
    expected = [gsm8k.grade(q, a) for q, a in zip(questions, answers, strict=True)]
    assert found == [(item, [sample]) for item, sample in expected]


def test_a_wrong_function_fails_with_its_reason() -> None:
    data = rows("code", "test", 2)
    _, questions = micro_code.prepare(data, ask("chat"))
    answers = [
        [GenerateAnswer("\n    return 12345\n", 3, "end")],
        [GenerateAnswer("\n    return 0\n", 1, "end")],
    ]
    [(first, [told]), (second, [wrong])] = micro_code.grades(questions, answers)
    assert first["pass@1"] == second["pass@1"] == 0
    assert "not run" in told["fault"] and "12345" in told["fault"]
    assert wrong["fault"].startswith("AssertionError") and "assert" in wrong["test"]


def test_tests_from_outside_the_vocabulary_are_refused_before_anything_runs() -> None:
    bad = {**rows("code", "test", 1)[0], "test": "import os\ndef check(c):\n    os.abort()\n"}
    with pytest.raises(DataError, match=r"micro_code.*row 0.*not run: Import"):
        micro_code.prepare([bad], ask("chat"))
    with pytest.raises(DataError, match=r"micro_code.*row 0.*entry_point"):
        micro_code.prepare([{"prompt": "x", "test": "y"}], ask("chat"))
