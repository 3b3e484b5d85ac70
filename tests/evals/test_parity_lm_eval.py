"""Prompts, log-likelihoods and grades equal lm-eval 0.4.13's, item by item.

lm-eval runs its own packaged YAML files and its own evaluator on an ordinary
transformers model; only the rows are handed in, so nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from laura.data.sources import load_rows
from laura.engine.engine import Engine
from laura.engine.requests import ScoreAnswer
from laura.evals import tasks
from laura.evals.scoring import choice_item
from laura.evals.tasks import gsm8k
from laura.results.task_result import summarise
from tests.evals.lm_eval_rows import plain_model

# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]


def _load_parity() -> ModuleType:
    """The comparison itself stands in benchmarks/, where a person runs it on 200 items."""
    import sys

    path = Path(__file__).parents[2] / "benchmarks" / "parity_lm_eval.py"
    spec = importlib.util.spec_from_file_location("parity_lm_eval", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parity = _load_parity()


@pytest.mark.parametrize("name", parity.CHOICE_TASKS)
def test_choice_prompts_golds_and_lengths_equal(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    entry, module = tasks.find(name), tasks.load(name)
    rows = load_rows(name, entry.split, shared_data)
    rows = random.Random(0).sample(rows, 300)
    questions = [module.question(row, index) for index, row in enumerate(rows)]
    reference = parity.reference_task(name, rows, [], tmp_path)
    reference.build_all_requests()
    ours = [(r.context, r.continuation) for q in questions for r in q.requests]
    assert ours == [instance.args for instance in reference.instances]
    for question, document in zip(questions, reference.eval_docs, strict=True):
        choices = reference.doc_to_choice(document)
        assert list(question.choice_characters) == [len(choice) for choice in choices]
        filled = name == "winogrande"
        gold = reference.doc_to_text(document) if filled else reference.doc_to_target(document)
        assert question.gold == gold


@pytest.mark.parametrize("name", parity.CHOICE_TASKS)
def test_choice_metrics_equal_on_random_answers(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    """Whatever the log-likelihoods (ties too), both grade and sum up alike."""
    from lm_eval.api.metrics import mean, mean_stderr

    entry, module = tasks.find(name), tasks.load(name)
    rows = load_rows(name, entry.split, shared_data)[:100]
    reference = parity.reference_task(name, rows, [], tmp_path)
    generator = random.Random(1)
    items, theirs = [], []
    for index, (row, document) in enumerate(zip(rows, reference.eval_docs, strict=True)):
        question = module.question(row, index)
        pairs = [(float(generator.randint(-9, -1)), False) for _ in question.requests]
        answers = [ScoreAnswer(value, greedy, 1) for value, greedy in pairs]
        items.append(choice_item(question, answers, module.METRICS, entry.metric))
        theirs.append(reference.process_results(document, pairs))
    for metric in module.METRICS:
        expected = [found[metric] for found in theirs]
        assert [item[metric] for item in items] == expected
        summary = summarise(items, metric, True)
        assert summary.value == pytest.approx(mean(expected))
        assert summary.stderr == pytest.approx(mean_stderr(expected))
    assert set(module.METRICS) == set(theirs[0])
    assert reference.VERSION == float(module.VERSION)


@pytest.mark.parametrize("choice", list(gsm8k.Shots))
def test_gsm8k_prompts_equal(choice: gsm8k.Shots, shared_data: Path, tmp_path: Path) -> None:
    """`first` is lm-eval with sampler first_n; `sampled` is lm-eval as it comes."""
    rows = load_rows("gsm8k", "test", shared_data)[:100]
    training = load_rows("gsm8k", "train", shared_data)
    first = {"fewshot_config": {"sampler": "first_n", "split": "train"}}
    changes = first if choice is gsm8k.Shots.FIRST else {}
    reference = parity.reference_task("gsm8k", rows, training, tmp_path, **changes)
    reference.set_fewshot_seed(1234)  # what lm-eval's evaluator sets unless told otherwise
    reference.build_all_requests()
    questions = gsm8k.questions(rows, training, 5, 256, choice)
    assert [q.requests[0].prompt for q in questions] == [i.args[0] for i in reference.instances]
    assert reference.config.num_fewshot == 5
    options = reference.instances[0].args[1]
    assert (tuple(options["until"]), options["do_sample"]) == (gsm8k.STOP, False)
    assert reference.VERSION == 3.0


def _outputs(rows: list[dict[str, Any]]) -> list[str]:
    """Answers of many kinds: right, wrong, and awkwardly written."""
    generator = random.Random(2)
    pieces = [
        "#### {n}", "####{n}", "#### ${n}", "#### {n}.", "#### {n},000", "#### -{n}", "#### {n}.0",
        "The answer is {n}", "the answer is ${n}.", "#### abc", "#### ,", "#### .", "$", "-", "\n",
        " {n} apples and 12", "#### {n}\n#### 7", "#### 7\n#### {n}", "1,2,3.", "##### {n}",
        "#### {n} #### {n}", "It costs $1,000.50.", "Ä {n}", "\u0661\u0662", "4 - 2 = 2-",
    ]  # fmt: skip
    outputs = []
    for row in rows:
        number = row["answer"].rpartition("#### ")[2].strip()
        number = number if generator.random() < 0.7 else str(generator.randint(0, 99))
        parts = generator.sample(pieces, generator.randint(0, 3))
        outputs.append(" ".join(part.format(n=number) for part in parts))
    return outputs


def test_gsm8k_extraction_and_grades_equal(shared_data: Path, tmp_path: Path) -> None:
    rows = load_rows("gsm8k", "test", shared_data)
    reference = parity.reference_task(
        "gsm8k", rows, [], tmp_path, fewshot_split=None, num_fewshot=0
    )
    outputs, documents = _outputs(rows), list(reference.eval_docs)
    strict, flexible = (
        list(ensemble.filters[1]().apply(
            ensemble.filters[0]().apply([[text] for text in outputs], documents), documents
        ))
        for ensemble in reference._filters
    )  # fmt: skip
    assert [gsm8k.extract_strict(text) for text in outputs] == strict
    assert [gsm8k.extract_flexible(text) for text in outputs] == flexible
    marks = 0
    for extracted in (strict, flexible):
        for found, document in zip(extracted, documents, strict=True):
            theirs = reference.process_results(document, [found])["exact_match"]
            assert gsm8k.matches(found, document["answer"]) == theirs
            marks += int(theirs)
    assert 200 < marks < 2400


@pytest.mark.parametrize("name", parity.CHOICE_TASKS)
def test_tiny_model_scores_equal(
    name: str,
    tiny_folder: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    found = parity.compare_choices(name, engine, plain_model(tiny_folder), shared_data, 6, tmp_path)
    assert found.items == 6
    assert found.same_prompts
    assert found.same_marks
    assert found.largest_nats < 1e-3


def test_tiny_model_answers_equal(
    tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any, shared_data: Path, tmp_path: Path
) -> None:
    """Prompts longer than the tiny context, too: both cut them from the left."""
    engine = Engine(tiny_model, tiny_tokenizer)
    found = parity.compare_gsm8k(
        engine, plain_model(tiny_folder), shared_data, 4, tmp_path, shots=1, max_new_tokens=12
    )
    assert found.same_prompts
    assert found.same_marks


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CHOICE_TASKS)
def test_real_model_scores_equal(
    name: str, smollm2: Any, shared_data: Path, tmp_path: Path
) -> None:
    engine = Engine(smollm2.model, smollm2.tokenizer)
    found = parity.compare_choices(
        name, engine, plain_model(smollm2.folder), shared_data, 8, tmp_path
    )
    assert found.same_prompts
    assert found.same_marks
    assert found.largest_nats < 1e-3


@pytest.mark.slow
def test_real_model_answers_equal(smollm2: Any, shared_data: Path, tmp_path: Path) -> None:
    engine = Engine(smollm2.model, smollm2.tokenizer)
    found = parity.compare_gsm8k(
        engine, plain_model(smollm2.folder), shared_data, 2, tmp_path, max_new_tokens=24
    )
    assert found.same_prompts
    assert found.same_marks
