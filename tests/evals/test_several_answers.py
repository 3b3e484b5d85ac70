"""Generation tasks of the micro laboratory and GSM8K: one greedy answer, or several drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from laura.engine.requests import GenerateAnswer
from laura.evals import scoring
from laura.evals.scoring import TaskSettings
from laura.evals.tasks import gsm8k, load, micro_code, micro_math
from laura.micro.targets import rows, running_text
from laura.recipe.sections import Extra, MeasureSection
from laura.results.errors import DataError

EXTRA = Extra(task="micro_code", samples=4, temperature=0.7, top_p=0.9, k=[1, 2, 4])


def ask(form: str = "chat", extra: Extra | None = None) -> TaskSettings:
    section = MeasureSection(micro_prompt=form, gsm8k_shots=1)  # type: ignore[arg-type]
    data = [{"question": "1 + 1?", "answer": "2\n#### 2"}] * 8
    chat = lambda turns: f"<{turns[-1]['content']}>"  # noqa: E731
    return TaskSettings(section, lambda split: data, lambda: chat, extra)


def answers(texts: Sequence[str]) -> list[GenerateAnswer]:
    return [GenerateAnswer(text, 3, "end") for text in texts]


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
        [(item, [sample])] = load(name).grades([question], [answers([rest])])
        assert item[load(name).METRICS[0]] == 1 and item["index"] == question.index
        assert sample["text"] == rest


def test_a_wrong_function_fails_with_its_reason() -> None:
    _, questions = micro_code.prepare(rows("code", "test", 2), ask())
    own = [answers([f"\n    return {value}\n"]) for value in (12345, 0)]
    [(first, [told]), (second, [wrong])] = micro_code.grades(questions, own)
    assert first["pass@1"] == second["pass@1"] == 0
    assert "not run" in told["fault"] and "12345" in told["fault"]
    assert wrong["fault"].startswith("AssertionError") and "assert" in wrong["test"]


def test_tests_from_outside_the_vocabulary_are_refused_before_anything_runs() -> None:
    bad = {**rows("code", "test", 1)[0], "test": "import os\ndef check(c):\n    os.abort()\n"}
    with pytest.raises(DataError, match=r"micro_code.*row 0.*not run: Import"):
        micro_code.prepare([bad], ask())
    with pytest.raises(DataError, match=r"micro_code.*row 0.*entry_point"):
        micro_code.prepare([{"prompt": "x", "test": "y"}], ask())


@pytest.mark.parametrize("name", ["gsm8k", "micro_math", "micro_code"])
def test_an_extra_asks_the_same_more_often(name: str) -> None:
    data = rows("code" if name == "micro_code" else "math", "test", 3)
    version, plain = load(name).prepare(data, ask())
    drawn_version, drawn = load(name).prepare(data, ask(extra=EXTRA))
    words = "; 4 samples at temperature 0.7, top_p 0.9; pass@1, pass@2, pass@4"
    assert drawn_version == version + words
    for one, several in zip(plain, drawn, strict=True):
        [greedy] = one.requests
        assert (greedy.temperature, greedy.top_p, greedy.seed) == (0.0, 1.0, 0)
        assert len(several.requests) == 4
        for number, request in enumerate(several.requests):
            assert request.seed == scoring.seed(name, one.index, number)
            assert (request.temperature, request.top_p) == (0.7, 0.9)
            assert request.prompt == greedy.prompt and request.stop == greedy.stop
            assert request.max_new_tokens == greedy.max_new_tokens


@pytest.mark.parametrize(
    ("texts", "exact", "flexible", "majority"),
    [
        (["#### 5", "#### 1,000", "#### 1000", "so 1000"], 0.5, 0.75, 1),
        (["#### 5", "#### 5", "#### 1000", "1000"], 0.25, 0.5, 0),
        (["#### 1000", "#### 5", "#### 5", "#### 1000"], 0.5, 0.5, 1),  # the first of equals
        (["what", "what", "what", "#### 1000"], 0.25, 0.25, 0),  # no answer is an answer too
    ],
)
def test_numbers_are_graded_by_shares_and_by_majority(
    texts: list[str], exact: float, flexible: float, majority: int
) -> None:
    data = [{"question": "how many?", "answer": "it is\n#### 1,000"}]
    _, questions = micro_math.prepare(data, ask(extra=EXTRA))
    [(item, samples)] = micro_math.grades(questions, [answers(texts)])
    assert (item["exact_match"], item["pass@1"]) == (exact, exact)
    assert (item["flexible_extract"], item["majority"]) == (flexible, majority)
    assert (item["samples"], item["passes"], item["correct"]) == (4, 4 * exact, False)
    assert item["tokens"] == 12 and item["pass@4"] == 1
    singles = [gsm8k.grade(questions[0], answer) for answer in answers(texts)]
    assert item["passes"] == sum(one["exact_match"] for one, _ in singles)
    assert [sample["sample"] for sample in samples] == [0, 1, 2, 3]
    assert [sample["passed"] for sample in samples] == [one["correct"] for one, _ in singles]
    assert [sample["strict"] for sample in samples] == [sample["strict"] for _, sample in singles]
    assert [sample["answer"] for sample in samples] == [
        sample["strict"].replace(",", "") for sample in samples
    ]


def test_programs_pass_one_by_one() -> None:
    data = rows("code", "test", 2)
    _, questions = micro_code.prepare(data, ask(extra=EXTRA))
    right = data[0]["canonical_solution"]
    own = [right, "\n    return 12345\n", right, "\n    return 0\n"]
    found = micro_code.grades(questions, [answers(own), answers(["x"] * 4)])
    (item, samples), (other, _) = found
    assert [sample["passed"] for sample in samples] == [True, False, True, False]
    assert (item["samples"], item["passes"], item["pass@1"]) == (4, 2, 0.5)
    assert item["pass@2"] == pytest.approx(1 - 1 / 6)  # one pair of six holds none that passes
    assert "12345" in samples[1]["fault"] and samples[0]["fault"] == ""
    assert (other["passes"], other["pass@4"]) == (0, 0)
