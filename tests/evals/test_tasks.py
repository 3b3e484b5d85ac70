"""Tasks: rows into questions, answers into items; no model."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from laura.data.examples import Example
from laura.data.templates import chat_prompts, encode
from laura.engine.requests import ScoreAnswer, ScoreRequest, TokenDocument
from laura.evals import tasks
from laura.evals.scoring import ChoiceQuestion, TaskSettings, choice_item, document_items
from laura.evals.tasks import arc_challenge, gsm8k, hellaswag, winogrande
from laura.recipe.sections import MeasureSection
from laura.recipe.tasks import BENCHMARKS, LOSSES
from laura.results.errors import DataError, DivergenceError, UsageError
from laura.results.task_result import summarise

HELLASWAG = {
    "activity_label": "Baking",
    "ctx_a": "[header] How to bake [title] Start.",
    "ctx_b": "the cook",
    "endings": ["[step] waits.", "eats  it."],
    "label": "1",
}
ARC = {
    "question": "What is hot?",
    "choices": {"text": ["Ice", "Fire", "Snow"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
WINOGRANDE = {
    "sentence": "Ann thanked Bo because _ helped her.",
    "option1": "Ann",
    "option2": "Bo",
    "answer": "2",
}
GSM8K = {"question": "How many?", "answer": "So many.\n#### 1,234"}


def test_table_covers_what_a_recipe_may_name_and_loads_every_file() -> None:
    # Validation loss chooses learning rates; a recipe cannot ask for it.
    assert set(tasks.TASKS) == {*BENCHMARKS, *LOSSES, "validation_loss"}
    for name, entry in tasks.TASKS.items():
        module = tasks.load(name)
        assert entry.metric in module.METRICS
        assert bool(entry.split) == (entry.kind in ("choice", "generation"))


def test_table_does_not_import_torch() -> None:
    code = (
        "import sys, laura.evals.tasks, laura.results.task_result, laura.results.statistics; "
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "near"),
    [("helaswag", "hellaswag"), ("ARC-challenge", "arc_challenge"), ("GSM-8k", "gsm8k")],
)
def test_unknown_task_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        tasks.find(name)
    with pytest.raises(UsageError, match="Tasks: hellaswag, arc_challenge, winogrande, gsm8k"):
        tasks.find("zzzz")


def _choice(loglikelihoods: list[float], characters: tuple[int, ...], gold: int) -> dict[str, Any]:
    requests = tuple(ScoreRequest("a", " b") for _ in loglikelihoods)
    question = ChoiceQuestion(3, requests, gold, characters)
    answers = [ScoreAnswer(value, False, 1) for value in loglikelihoods]
    return choice_item(question, answers, ("acc", "acc_norm"), "acc_norm")


def test_acc_and_acc_norm_can_disagree() -> None:
    item = _choice([-4.0, -6.0], (2, 6), gold=1)
    assert (item["acc"], item["acc_norm"], item["correct"]) == (0, 1, True)
    assert item["loglikelihoods"] == [-4.0, -6.0]
    assert item["choice_characters"] == [2, 6]


def test_numbers_that_are_not_finite_are_a_divergence() -> None:
    with pytest.raises(DivergenceError, match="log-likelihoods of item 3 hold nan"):
        _choice([math.nan, -1.0], (2, 2), gold=0)
    with pytest.raises(DivergenceError, match="document 0 hold inf"):
        document_items([_document()], [[1.0, math.inf]])


BAD_ROWS: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (hellaswag, HELLASWAG, {"label": "2"}, "needs 'label' 0 to 1, came '2'"),
    (hellaswag, HELLASWAG, {"label": None}, "came 'None'"),
    (hellaswag, HELLASWAG, {"endings": "no"}, "needs 'endings' as a list"),
    (hellaswag, HELLASWAG, {"endings": ["[cut]", "a"]}, r"needs 'endings \(cleaned\)'"),
    (hellaswag, HELLASWAG, {"ctx_b": 3}, "needs 'ctx_b' as text, came 3"),
    (arc_challenge, ARC, {"answerKey": "D"}, "needs 'answerKey' among"),
    (arc_challenge, ARC, {"choices": []}, "needs 'choices' with text and label"),
    (arc_challenge, ARC, {"choices": {"text": ["a", "b"], "label": ["A"]}}, "choices.label"),
    (arc_challenge, ARC, {"choices": {"text": ["a", "b"], "label": [*"ABC"]}}, "2 choices but"),
    (winogrande, WINOGRANDE, {"answer": ""}, "needs 'answer' 1 or 2, came ''"),
    (winogrande, WINOGRANDE, {"sentence": "no blank"}, "needs a blank"),
    (winogrande, WINOGRANDE, {"sentence": "ends in _ "}, "needs a blank"),
]


@pytest.mark.parametrize(("module", "row", "change", "message"), BAD_ROWS)
def test_bad_rows_name_task_row_and_remedy(
    module: Any, row: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        module.question({**row, **change}, 5)
    assert f"{module.TASK}: row 5 (counted from 0)" in str(caught.value)
    assert "mend the row" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "row"), [(hellaswag, HELLASWAG), (arc_challenge, ARC), (winogrande, WINOGRANDE)]
)
def test_missing_fields_name_what_came(module: Any, row: dict[str, Any]) -> None:
    for field in row:
        less = {name: value for name, value in row.items() if name != field}
        with pytest.raises(DataError):
            module.question(less, 0)
    with pytest.raises(DataError, match="its fields are text"):
        module.question({"text": "x"}, 0)
    with pytest.raises(DataError, match="is list, not an object"):
        module.question([], 0)


@pytest.mark.parametrize("shots", [0, 2])
def test_gsm8k_asks_in_chat_as_instruct_training_shows_it(tiny_tokenizer: Any, shots: int) -> None:
    training = [{"question": f"Q{i}?", "answer": f"Thus.\n#### {i}"} for i in range(2)]
    chat = chat_prompts(tiny_tokenizer)
    (asked,) = gsm8k.questions([GSM8K], training, shots, 9, chat=chat)
    turns = [
        turn
        for row in [*training[:shots], GSM8K]
        for turn in (("user", row["question"]), ("assistant", row["answer"]))
    ]
    learnt = encode(Example(0, tuple(turns)), tiny_tokenizer, "chat", "instruct")
    marks = learnt.supervised
    start = max(i for i in range(1, len(marks)) if marks[i] and not marks[i - 1])
    prompt = tiny_tokenizer(asked.requests[0].prompt, add_special_tokens=False)["input_ids"]
    assert prompt == learnt.token_ids[:start]


def test_the_version_of_gsm8k_changes_with_how_it_is_asked() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"gsm8k_shots": 2}, {"gsm8k_tokens": 9}, {"gsm8k_sampler": "sampled"},
        {"gsm8k_prompt": "chat"},
    ]  # fmt: skip
    sections = [MeasureSection(**change) for change in changes]
    versions = [
        gsm8k.prepare([GSM8K], TaskSettings(section, lambda split: [GSM8K] * 8, lambda: str))[0]
        for section in sections
    ]
    assert versions[0] == "3.0; 5 shots, first; 256 new tokens"
    assert versions[-1] == versions[0] + "; chat" and len(set(versions)) == 5


def test_gsm8k_refuses_bad_rows() -> None:
    with pytest.raises(DataError, match=r"5 worked examples are wanted .* has 1 rows"):
        gsm8k.questions([GSM8K], [GSM8K], 5, 9)
    with pytest.raises(DataError, match=r"gsm8k test: row 1 .* needs an answer with '#### NUMBER'"):
        gsm8k.questions([GSM8K, {"question": "?", "answer": "none"}], [], 0, 9)
    with pytest.raises(DataError, match=r"gsm8k train: row 0 .* needs 'question' as text"):
        gsm8k.questions([GSM8K], [{"answer": "#### 1"}], 1, 9)


def _document(bytes_: int = 11, index: int = 0) -> TokenDocument:
    return TokenDocument([1, 2, 3], [False, True, True], bytes_, index)


def test_losses_are_weighted_by_tokens_and_by_bytes() -> None:
    documents = [_document(10, 4), _document(30, 5)]
    items = document_items(documents, [[1.0, 2.0], [4.0, 5.0]])
    assert items[0] == {"index": 4, "nats": 3.0, "tokens": 2, "bytes": 10}
    assert summarise(items, "nats_per_token", False).value == pytest.approx(12 / 4)
    assert summarise(items, "nats_per_byte", False).value == pytest.approx(12 / 40)
