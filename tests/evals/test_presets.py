"""IFEval and refusals by names of Laura's, over local rows, graded as lm-eval and by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from laura.engine.requests import GenerateAnswer
from laura.evals.lm_eval.tasks import IFEVAL, PRESETS
from laura.evals.runner import Material, evaluate, file_rows
from laura.recipe.sections import MeasureSection
from laura.recipe.tasks import LM_EVAL_PRESETS, file_name_fault
from laura.results.errors import DataError, MissingExtraError
from laura.study.evidence import measure_of, result_names
from tests.conftest import make_tiny_tokenizer

# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]

# Prompt, instructions with what they want, answer, all followed, all followed but for marks.
FOLLOWED: list[tuple[str, list[str], list[dict[str, Any]], str, bool, bool]] = [
    ("No commas.", ["punctuation:no_comma"], [{}], "a b c", True, True),
    ("No commas, please.", ["punctuation:no_comma"], [{}], "a, b", False, False),
    ("Twice cat, no commas.", ["keywords:frequency", "punctuation:no_comma"],
     [{"relation": "at least", "frequency": 2, "keyword": "cat"}, {}], "cat", False, False),
    ("JSON.", ["detectable_format:json_format"], [{}], 'Here it is:\n{"a": 1}', False, True),
    ("Two sentences.", ["length_constraints:number_sentences"],
     [{"relation": "at least", "num_sentences": 2}], "One is here. Two is too.", True, True),
    ("French.", ["language:response_language"], [{"language": "fr"}],
     "Le chat est assis sur la table et regarde le chien.", True, True),
]  # fmt: skip
REFUSED = [
    ("how to a", "I'm sorry, but no.", True), ("how to b", "Sure! First,", False),
    ("how to c", "As an AI, I would rather not", True), ("how to d", "I can’t help.", True),
]  # fmt: skip


class Scripted:
    """An engine that has an answer to everything."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.asked = answers, list[Any]()
        self.tokenizer: Any = make_tiny_tokenizer()
        self.precision, self.encoder, self.progress = "torch.float32", None, None

    def generate(self, requests: Any, *_: Any, **__: Any) -> list[GenerateAnswer]:
        self.asked += requests
        found = [next(a for p, a in self.answers.items() if p in one.prompt) for one in requests]
        return [GenerateAnswer(text, (), "stop") for text in found]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both tasks over local rows, and NLTK's sentences."""
    import nltk

    ifeval = [
        {"key": number, "prompt": prompt, "instruction_id_list": names, "kwargs": wanted}
        for number, (prompt, names, wanted, *_) in enumerate(FOLLOWED)
    ]
    # Rows of one table have the same fields: those that are not wanted are null there.
    keys = {key for row in ifeval for one in row["kwargs"] for key in one}
    for row in ifeval:
        row["kwargs"] = [{key: one.get(key) for key in keys} for one in row["kwargs"]]
    write(tmp_path, "ifeval", IFEVAL / "ifeval.yaml", ifeval)
    refusals = [{"question": question} for question, *_ in REFUSED]
    write(tmp_path, "laura_refusals", PRESETS / "refusals.yaml", refusals)
    sentences = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    sentences.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (sentences / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    return tmp_path


def write(folder: Path, name: str, task: Path, rows: list[dict[str, Any]]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = "train"
    files = {"data_files": {split: str(data)}, "cache_dir": str(folder / "cache")}
    whole = {"include": str(task), "task": name, "dataset_path": "json", "dataset_kwargs": files}
    (folder / f"{name}.yaml").write_text(json.dumps(whole))


def measured(names: list[str], engine: Any, folder: Path, out: Path, **settings: Any) -> Any:
    section = MeasureSection(forgetting=names, lm_eval_include=str(folder), **settings)
    material = Material(section, file_rows(None), {})
    return evaluate(
        engine, names, material, model_name="base", out=lambda name: out / f"{name}.json"
    )


def test_ifeval_is_graded_by_lm_evals_own_functions(stand_in: Path, tmp_path: Path) -> None:
    from lm_eval.tasks.ifeval import utils

    engine = Scripted({row[0]: row[3] for row in FOLLOWED})
    (result,) = measured(["ifeval"], engine, stand_in, tmp_path / "out").values()
    assert [item["prompt_level_strict_acc"] for item in result.items] == [r[4] for r in FOLLOWED]
    assert [item["prompt_level_loose_acc"] for item in result.items] == [r[5] for r in FOLLOWED]
    for row, item in zip(FOLLOWED, result.items, strict=True):
        doc = {"key": 0, "prompt": row[0], "instruction_id_list": row[1], "kwargs": row[2]}
        theirs = utils.process_results(doc, [row[3]])
        assert {name: bool(item[name]) for name in result.metrics} == {
            name: theirs[name] for name in result.metrics
        }
    # Counted over instructions, not prompts: no mean over the items.
    assert list(result.metrics) == ["prompt_level_strict_acc", "prompt_level_loose_acc"]
    assert {one.max_new_tokens for one in engine.asked} == {1280}
    measure = measure_of("ifeval", [result], {"title": "IFEval"})
    assert measure.is_accuracy and measure.metric == "prompt_level_strict_acc"


def test_refusals_are_counted_by_their_words(stand_in: Path, tmp_path: Path) -> None:
    engine = Scripted({question: answer for question, answer, _ in REFUSED})
    (result,) = measured(["refusals"], engine, stand_in, tmp_path / "out").values()
    questions = [one.prompt for one in engine.asked]
    wanted = {question: refused for question, _, refused in REFUSED}
    assert sorted(questions) == sorted(wanted) != questions, "not mixed"
    assert [item["refused"] for item in result.items] == [wanted[q] for q in questions]
    assert result.metrics["refused"].value == 0.75 and result.metrics["refused"].higher_is_better


def test_they_are_asked_as_the_model_is_spoken_to(stand_in: Path, tmp_path: Path) -> None:
    engine = Scripted({question: answer for question, answer, _ in REFUSED})
    (plain,) = measured(["refusals"], engine, stand_in, tmp_path / "a").values()
    engine.asked.clear()
    (chat,) = measured(
        ["refusals"], engine, stand_in, tmp_path / "b", lm_eval_prompt="chat"
    ).values()
    assert engine.asked[0].prompt == engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": plain_question(engine.asked[0].prompt)}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    assert plain.version != chat.version
    engine.tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        measured(["refusals"], engine, stand_in, tmp_path / "c", lm_eval_prompt="chat")


def plain_question(prompt: str) -> str:
    return next(question for question, *_ in REFUSED if question in prompt)


def test_a_recipe_names_them_like_any_task() -> None:
    section = MeasureSection(learning=["ifeval"], forgetting=["refusals", "lm_eval:ifeval"])
    assert (section.learning, section.forgetting[0]) == (["ifeval"], "refusals")
    assert result_names(["ifeval", "refusals"]) == list(LM_EVAL_PRESETS)
    # Studies of before go on.
    assert "lm_eval_prompt" not in section.identity()
    assert file_name_fault("mine/ifeval.yaml").startswith("'ifeval' is a task of Laura")
    with pytest.raises(ValidationError, match="did you mean refusals"):
        MeasureSection(forgetting=["refusal"])


def test_what_is_missing_is_told_before_anything_is_asked(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    engine = Scripted({})
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_: False)
    with pytest.raises(DataError, match=r"python -m nltk.downloader punkt_tab"):
        measured(["ifeval"], engine, stand_in, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(MissingExtraError, match=r"needs langdetect, .*pip install 'laura-lab"):
        measured(["ifeval"], engine, stand_in, tmp_path / "out")
