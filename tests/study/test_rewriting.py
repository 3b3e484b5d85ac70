"""Answers in the base's own words, against a plain loop by transformers and programs run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from laura.data.examples import Example
from laura.data.sources import stream_examples
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer
from laura.evals.runner import file_rows
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BaseSection, MeasureSection, RewriteSection, Source
from laura.results.errors import DataError, RecipeError
from laura.results.progress import SILENT
from laura.results.store import StudyStore, read_json
from laura.study.material import ExampleEncoder
from laura.study.rewriting import ASK, rewrite
from laura.study.workbench import Workbench
from tests.study.carried_out import compare

MEASURE = MeasureSection(learning=["micro_code"], forgetting=["source_loss"], preset=None)
RECIPE = """
name: rewritten
base: {model: micro}
data:
  train: {source: micro-code, split: train, limit: 40}
  validation: {source: micro-code, split: validation, limit: 4}
  test: {source: micro-code, split: test}
  source_text: micro-source
  rewrite: {task: micro_code, tokens: 24}
budget: {tokens: [1_000]}
arms:
  lora: {method: lora, rank: 4, learning_rates: [2e-3]}
  sdft: {method: lora, rank: 4, learning_rates: [2e-3], rewritten: true}
train: {batch_tokens: 256, row_tokens: 256, precision: fp32}
seeds: [0]
measure:
  {learning: [target_loss], forgetting: [source_loss, kl], loss_documents: 4, loss_tokens: 64}
"""


@pytest.fixture(scope="module")
def base() -> Any:
    return Workbench(BaseSection(model="micro"), "cpu").base


def some(count: int) -> list[Example]:
    return [*stream_examples(Source(source="micro-code", split="train", limit=count))]


def rewritten(
    base: Any, engine: Any, examples: list[Example], folder: Path
) -> tuple[list[Example], int]:
    encoder = ExampleEncoder(base.tokenizer, "chat", "instruct")
    section = RewriteSection(task="micro_code", tokens=24)
    return rewrite(
        examples, section, MEASURE, engine, encoder, file_rows(None), base.fingerprint, folder,
        SILENT,
    )  # fmt: skip


class Written:
    """An engine that answers with these texts and counts what it is asked."""

    def __init__(self, base: Any, texts: list[str]) -> None:
        engine = Engine(base.model, base.tokenizer, torch.float32)
        self.tokenizer, self.encoder, self.progress = engine.tokenizer, engine.encoder, SILENT
        self.precision, self.texts, self.asked = engine.precision, texts, 0

    def generate(self, requests: Any, known: Any, found: Any) -> list[GenerateAnswer]:
        self.asked += len(requests)
        return [GenerateAnswer(text, 1, "end") for text in self.texts[: len(requests)]]


def passes(row: dict[str, Any], text: str) -> bool:
    """By running the program here; only for answers that the test itself has written."""
    space: dict[str, Any] = {}
    try:
        exec(row["prompt"] + text + "\n" + row["test"], space)
        space["check"](space[row["entry_point"]])
    except Exception:
        return False
    return True


def test_right_answers_take_the_place_and_wrong_ones_do_not(base: Any, tmp_path: Path) -> None:
    examples, rows = some(4), file_rows(None)("micro_code", "train")
    own = [f"\n    return ({e.messages[1][1].split('return ')[1].strip()})\n" for e in examples]
    texts = [own[0], "\n    return 0\n", own[2], ""]
    assert [passes(rows[e.index], t) for e, t in zip(examples, texts, strict=True)] == [
        True, False, True, False,
    ]  # fmt: skip
    engine = Written(base, texts)
    found, count = rewritten(base, engine, examples, tmp_path)
    assert count == 2
    answers = [example.messages[1][1] for example in found]
    assert answers == [own[0], examples[1].messages[1][1], own[2], examples[3].messages[1][1]]
    assert [e.messages[0] for e in found] == [e.messages[0] for e in examples]
    assert rewritten(base, engine, examples, tmp_path) == (found, count)
    assert engine.asked == 4, "what stands is read"


def test_the_answers_are_those_of_a_plain_loop(base: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    examples = some(3)
    heard: list[Any] = []

    class Heard(Engine):
        def generate(self, requests: Any, **given: Any) -> Any:
            heard.append(super().generate(requests, **given))
            return heard[-1]

    rewritten(base, Heard(base.model, base.tokenizer, torch.float32), examples, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    for example, answer in zip(examples, heard[0], strict=True):
        (_, asked), (_, right) = example.messages
        content = ASK.format(asked=asked, answer=right)
        text = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = base.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = plain.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        wanted = base.tokenizer.decode(out, skip_special_tokens=True)
        assert answer.text == wanted


def test_rows_of_another_benchmark_are_refused(base: Any, tmp_path: Path) -> None:
    strangers = [*stream_examples(Source(source="micro-math", split="train", limit=2))]
    with pytest.raises(DataError, match="is not row 0 of micro_code's training rows"):
        rewritten(base, Written(base, []), strangers, tmp_path)


@pytest.mark.slow
def test_an_arm_learns_them_and_the_others_do_not(tmp_path: Path) -> None:
    summary = compare(parse_recipe(RECIPE), study=tmp_path)
    assert {run["state"] for run in summary["runs"]} == {"done"}
    identities = {}
    for run in summary["runs"]:
        record = read_json(StudyStore(tmp_path).run(run["id"]).folder / "run.json")
        identities[run["arm"]] = record["identity"]
    assert "rewrite" in identities["sdft"] and "rewrite" not in identities["lora"]
    assert [*(tmp_path / "rewritten").glob("*/answers.jsonl.gz")]
    # This base writes nothing right, so that the same is learnt whatever it was asked.
    again = compare(parse_recipe(RECIPE.replace("tokens: 24", "tokens: 25")), study=tmp_path)
    assert len(again["runs"]) == len(summary["runs"]) == 2
    assert len([*(tmp_path / "rewritten").glob("*/answers.jsonl.gz")]) == 2


def test_what_does_not_fit_is_refused() -> None:
    def faults(*pairs: tuple[str, str]) -> dict[str, str]:
        text = RECIPE
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        with pytest.raises(RecipeError) as caught:
            parse_recipe(text)
        return {fault.path: fault.problem for fault in caught.value.faults}

    said = faults(("  rewrite: {task: micro_code, tokens: 24}\n", ""))
    assert "by which grader" in said["arms.sdft.rewritten"]
    assert "used by no arm" in faults((", rewritten: true", ""))["data.rewrite"]
    pretrain = faults(("budget:", "regime: pretrain\nbudget:"))
    assert "has no answers" in pretrain["regime"]
    assert "must be" in faults(("task: micro_code", "task: winogrande"))["data.rewrite.task"]
