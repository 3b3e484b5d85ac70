"""What a model is asked while it is trained, and who grades it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from laura.data.examples import Example
from laura.data.sources import stream_examples
from laura.engine.requests import GenerateAnswer
from laura.evals.runner import file_rows
from laura.models.encoding import Encoder
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BaseSection, LoraArm, MeasureSection, Source
from laura.results.errors import DataError
from laura.results.store import StudyStore, read_json
from laura.study.material import ExampleEncoder
from laura.study.questions import Grader, questions_of
from laura.study.workbench import Workbench
from tests.study.carried_out import compare

RECIPE = """
name: own-answers
base: {model: micro}
data:
  train: {source: micro-code, split: train, limit: 40}
  validation: {source: micro-code, split: validation, limit: 4}
  test: {source: micro-code, split: test}
  source_text: micro-source
budget: {tokens: [500]}
arms:
  sdft: {method: lora, rank: 4, learning_rates: [1e-3, 2e-3], policy: sdft, policy_tokens: 24}
  grpo: {method: full, learning_rates: [2e-4], policy: grpo, policy_tokens: 24, policy_samples: 4}
train: {batch_tokens: 256, row_tokens: 256, precision: fp32, cohort: 2}
search: {extend: 0}
seeds: [0]
measure:
  {learning: [micro_code], forgetting: [source_loss, kl], loss_documents: 4, loss_tokens: 64,
   limit: 4}
"""
POLICY = LoraArm(method="lora", policy="sdft")


@pytest.fixture(scope="module")
def base() -> Any:
    return Workbench(BaseSection(model="micro"), "cpu").base


def some(count: int) -> list[Example]:
    return [*stream_examples(Source(source="micro-code", split="train", limit=count))]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_questions_are_read_as_training_reads_them(base: Any, template: str) -> None:
    """A conversation too: what comes before its last answer, which alone is the model's."""
    encoder = ExampleEncoder(base.tokenizer, template, "instruct")
    long = Example(
        9, (("user", "count cats"), ("assistant", "2"), ("user", "and"), ("assistant", "3"))
    )
    examples = [*some(3), long]
    questions = questions_of(POLICY, examples, encoder, None)
    for example, encoded in zip(examples, encoder.to_learn(examples), strict=True):
        read = Encoder(base.tokenizer, base.model.config).prompt(
            questions.prompt(example.index), 24
        )
        answer = encoded.token_ids[len(read) :]
        assert encoded.token_ids[: len(read)] == read
        assert all(encoded.supervised[len(read) :][: len(answer) - 1]) and len(answer) > 1
        assert not encoded.supervised[len(read) - 1]
        (*_, (_, asked), (_, right)) = example.messages
        told = questions.told(example.index)
        assert f"{asked}\n\nAn answer that is right:\n{right}\n" in told
        assert (
            told.replace(told[told.index(asked) :], "")
            == questions.prompt(example.index).split(asked)[0]
        )


def test_an_example_that_demonstrates_nothing_is_refused(base: Any) -> None:
    encoder = ExampleEncoder(base.tokenizer, "chat", "instruct")
    for messages in (
        (("user", "why"), ("assistant", " ")),
        (("assistant", "why"),),
        (("user", "a"),),
    ):
        with pytest.raises(DataError, match=r"example 4 of data\.train does not end"):
            questions_of(POLICY, [Example(4, messages)], encoder, None)


def test_each_answer_is_graded_as_its_own_question(base: Any) -> None:
    measure = MeasureSection(learning=["micro_code"], forgetting=["source_loss"])
    examples = some(2)
    grader = Grader("micro_code", examples, measure, base.tokenizer, file_rows(None))
    texts = [example.messages[1][1] for example in examples]
    answers = [GenerateAnswer(text, 1, "end") for text in (*texts, *reversed(texts), "")]
    assert grader([0, 1, 0, 1, 0], answers) == [1, 1, 0, 0, 0]
    strangers = [replace(one, index=one.index + 1) for one in examples]
    with pytest.raises(DataError, match="is not row 1 of micro_code's training rows"):
        Grader("micro_code", strangers, measure, base.tokenizer, file_rows(None))


def test_programs_of_several_samples_are_graded_one_by_one(base: Any) -> None:
    row = {"text": "Double x.", "code": "def double(x):\n    return 2 * x", "task_id": 601}
    row["test_list"] = [f"assert double({x}) == {2 * x}" for x in range(3)]
    example = Example(0, (("user", str(row["text"])), ("assistant", str(row["code"]))))
    measure = MeasureSection(
        learning=["mbpp"], forgetting=["source_loss"], code_samples=4, code_temperature=0.2,
        code_prompt="chat", mbpp_shots=0,
    )  # fmt: skip
    grader = Grader("mbpp", [example], measure, base.tokenizer, lambda *_: [row])
    answers = [GenerateAnswer(text, 1, "end") for text in (str(row["code"]), "def double(x): x")]
    assert grader([0, 0], answers) == [1, 0]


@pytest.mark.slow
def test_arms_learn_their_own_answers(tmp_path: Path) -> None:
    summary = compare(parse_recipe(RECIPE), study=tmp_path)
    assert [run["state"] for run in summary["runs"]] == ["done"] * 3
    for run in summary["runs"]:
        own = StudyStore(tmp_path).run(run["id"])
        identity, rows = read_json(own.folder / "run.json")["identity"], own.metrics()
        assert identity.get("grader") == ("micro_code" if run["arm"] == "grpo" else None)
        # This base writes nothing right.
        assert {row.get("reward") for row in rows} == {0.0 if run["arm"] == "grpo" else None}
        assert all(1 <= row["answer_tokens"] <= 24 for row in rows)
        assert not any("cohort" in row for row in rows), "what one answers the other does not"
    assert len(compare(parse_recipe(RECIPE), study=tmp_path)["runs"]) == 3
