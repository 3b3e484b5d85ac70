"""A user's own task, and one of another package: measured as Laura's, every mistake told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer
from laura.evals import tasks, user_task
from laura.evals.runner import Material, evaluate, file_rows, plan_task
from laura.evals.scoring import TaskSettings
from laura.evals.tasks import TaskEntry
from laura.evals.user_task import UserTask
from laura.recipe.sections import MeasureSection
from laura.results.errors import DataError, UsageError
from laura.results.store import read_lines_gz
from laura.results.task_result import TaskResult, samples_file
from tests.evals.lm_eval_rows import write_task

# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

PYTHON_CHOICE = """
from laura.evals.scoring import ChoiceQuestion
from laura.engine.requests import ScoreRequest

VERSION, METRICS, ROWS = "3", ("acc",), "rows.jsonl"
TITLE = "Mine"

def question(row, index):
    requests = tuple(ScoreRequest(f"{row['q']} {c}", " it") for c in row["options"])
    return ChoiceQuestion(index, requests, row["gold"], (2,) * len(requests))
"""
PYTHON_GENERATION = """
from dataclasses import dataclass
from laura.engine.requests import GenerateRequest

METRICS, METRIC, HIGHER_IS_BETTER = ("words", "length"), "length", False

@dataclass
class Asked:
    index: int
    requests: tuple

def rows():
    return [{"q": "a"}, {"q": "b"}]

def prepare(rows, ask):
    asked = lambda i, q: Asked(i, tuple(GenerateRequest(q, (), 4, seed=s) for s in range(2)))
    return "7", [asked(i, row["q"]) for i, row in enumerate(rows)]

def grades(questions, answers):
    for question, own in zip(questions, answers):
        texts = [answer.text for answer in own]
        item = {"index": question.index, "words": len(texts), "length": len(texts[0])}
        yield item, [{"index": question.index, "text": text} for text in texts]
"""
ROWS = [{"q": "a", "options": ["x", "y"], "gold": 1}] * 2


def ask() -> TaskSettings:
    def never(*_: Any) -> Any:
        raise AssertionError

    return TaskSettings(MeasureSection(), never, never)


def loaded(path: Path, text: str, rows: list[Any] = ROWS) -> user_task.UserTask:
    path.write_text(text, encoding="utf-8")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.with_name("rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return user_task.UserTask.load(path)


def plan_of(path: Path | str, engine: Any, **changes: Any) -> Any:
    return plan_task(engine, str(path), Material(MeasureSection(**changes), file_rows(None), {}))


def test_a_file_runs_under_its_own_future_alone(tmp_path: Path) -> None:
    """A field's type is a type, as under Python itself, not our files' postponed text."""
    path = tmp_path / "mine.py"
    path.write_text(PYTHON_GENERATION)
    assert UserTask.load(path).module.Asked.__annotations__ == {"index": int, "requests": tuple}


def test_version_changes_with_file_and_rows(tmp_path: Path) -> None:
    first = loaded(tmp_path / "mine.py", PYTHON_CHOICE).VERSION
    assert loaded(tmp_path / "mine.py", PYTHON_CHOICE).VERSION == first
    changed_rows = loaded(tmp_path / "mine.py", PYTHON_CHOICE, [*ROWS, ROWS[0]]).VERSION
    changed_file = loaded(tmp_path / "mine.py", PYTHON_CHOICE + "\n# changed\n").VERSION
    assert len({first, changed_rows, changed_file}) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["is no task", "question", "prepare"]),
        ("def question(row, index): pass", ["VERSION", "METRICS", "ROWS or rows()"]),
        ("grades = 3\nMETRICS = ()", ["lacks prepare, ROWS or rows()", "grades must be a function",
                                      "METRICS must be a tuple"]),
        ("VERSION, METRICS, ROWS = '1', ('f1',), 3\nMETRIC = 'acc'\ndef question(r, i): pass",
         ["ROWS must be text", "f1", "METRIC must be one"]),
        ("HIGHER_IS_BETTER = 1\ndef question(r, i): pass", ["must be True or False, came 1"]),
        ("def question(:", ["does not run", "line 1"]),
        ("\nimport nowhere_to_be_found", ["does not run", "nowhere_to_be_found", "line 2"]),
    ],
)  # fmt: skip
def test_faulty_python_files_are_told_in_words(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path / "mine.py", text)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_a_users_function_that_fails_is_told_with_row_and_line(tmp_path: Path) -> None:
    rows = [ROWS[0], "", {"q": "a"}]
    task = loaded(tmp_path / "mine.py", PYTHON_CHOICE, rows)
    with pytest.raises(DataError, match=r"question\(\) failed on .*line 3: KeyError.*\(line 9\)"):
        task.question(task.rows()[1], 1)
    task = loaded(tmp_path / "mine.py", PYTHON_CHOICE.replace('row["gold"]', "5"), rows)
    with pytest.raises(DataError, match="gold 5"):
        task.question(task.rows()[0], 0)
    task = loaded(tmp_path / "mine.py", PYTHON_CHOICE.replace("return Choice", "Choice"), rows)
    with pytest.raises(DataError, match="gave NoneType for"):
        task.question(task.rows()[0], 0)
    for bad, words in (("[1]", "must be a JSON object"), ("{", "is not JSON")):
        with pytest.raises(DataError, match=f"rows.jsonl, line 2.*{words}"):
            loaded(tmp_path / "mine.py", PYTHON_CHOICE, [ROWS[0], bad]).rows()
    task = loaded(tmp_path / "mine.py", PYTHON_GENERATION.replace('"words": len(texts), ', ""))
    _, questions = task.prepare(task.rows(), ask())
    with pytest.raises(DataError, match="without words"):
        list(task.grades(questions, [[GenerateAnswer("a", 1, "end")]] * 2))
    for old, new in (("range(2)", "()"), ("index: int", "number: int")):
        task = loaded(tmp_path / "mine.py", PYTHON_GENERATION.replace(old, new))
        with pytest.raises(DataError, match="needs index"):
            task.prepare(task.rows(), ask())
    text = PYTHON_GENERATION.replace("def rows():", "def rows():\n    return [1]\ndef others():")
    with pytest.raises(DataError, match="must give dictionaries"):
        loaded(tmp_path / "mine.py", text).rows()


def test_a_file_that_is_nowhere_or_has_no_usable_name(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_bytes(b"\xff")
    for name, words in (
        ("odd.py", "cannot be read"),
        ("gsm8k.yaml", "is a task of Laura"),
        ("my task.py", "cannot be a name"),
        ("nowhere.py", "cannot be read"),
        ("nowhere.yml", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_of(tmp_path / name, None)


def test_shipped_examples_are_measured(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """One in lm-eval's YAML and one in Python; results and samples stand as every other's."""
    engine = Engine(tiny_model, tiny_tokenizer)
    names = [str(EXAMPLES / name) for name in ("science_questions.yaml", "small_sums.py")]
    given = Material(MeasureSection(), file_rows(None), {})
    results = evaluate(
        engine, names, given, model_name="tiny", out=lambda name: tmp_path / f"{name}.json"
    )
    assert [(name, result.n, list(result.metrics)) for name, result in results.items()] == [
        ("science_questions", 6, ["acc", "acc_norm"]), ("small_sums", 5, ["exact_match"]),
    ]  # fmt: skip
    for name, result in results.items():
        assert TaskResult.read(tmp_path / f"{name}.json") == result
    samples = read_lines_gz(samples_file(tmp_path / "science_questions.json"))
    assert [sample["target"] for sample in samples] == [1, 2, 1, 0, 3, 1]
    assert len(samples[0]["requests"]) == 4

    task = user_task.UserTask.load(EXAMPLES / "small_sums.py")
    _, questions = task.prepare(task.rows(), ask())
    prompt = questions[0].requests[0].prompt
    assert prompt.startswith("Question: What is 3 plus 4?\nAnswer: 7\n\nQuestion: What is 20")
    assert prompt.endswith("\n\nQuestion: What is 6 times 7?\nAnswer:")
    right = [[GenerateAnswer(t, 1, "stop")] for t in ("6*7 is 42", "1001", "-3", "5", "")]
    assert [item["exact_match"] for item, _ in task.grades(questions, right)] == [1, 1, 1, 0, 0]


def test_a_yaml_file_is_lm_evals_task(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """The same by its path as by its name; its data lie beside it; what is wrong is one line."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    config: dict[str, Any] = {
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "options",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc", **mean}],
    }  # fmt: skip
    name = write_task(tmp_path, "here", ROWS * 2, **config)
    path = tmp_path / "here.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"{tmp_path}/here.jsonl", "here.jsonl"), encoding="utf-8")
    engine = Engine(tiny_model, tiny_tokenizer)
    by_path = plan_of(path, engine, limit=3)
    path.write_text(text, encoding="utf-8")
    by_name = plan_of(f"lm_eval:{name}", engine, limit=3, lm_eval_include=str(tmp_path))
    assert (by_path.name, by_name.name) == ("here", "lm_eval.here")
    assert (by_path.version, by_path.covers) == (by_name.version, by_name.covers)
    # Several models one after the other, as adapters are: each has answers of its own.
    once, again = by_path.measure(engine, [None, None])
    assert once == again == by_name.measure(engine, [None])[0]

    for wrong, words in (
        (text.replace("doc_to_text", "doc_to_txt"), "doc_to_txt"),
        ("kind: multiple_choice\n", "lm-eval cannot use this task"),
        ("{", "lm-eval cannot use this task"),
        (f"group: all\ntask: [{name}, other]\n", "here.yaml"),
    ):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises((DataError, UsageError), match=words) as caught:
            plan_of(path, engine)
        assert "\n" not in str(caught.value)


def test_a_task_of_another_package_is_one_file_and_one_line(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    rows = '\ndef rows():\n    return [{"q": "a", "options": ["x", "y"], "gold": 1}] * 3\n'
    (package / "mine.py").write_text(PYTHON_CHOICE + rows, encoding="utf-8")
    (package / "written.py").write_text(PYTHON_GENERATION, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))

    tasks.TASKS["mine"] = TaskEntry("elsewhere.mine", "Mine, acc", "acc", "choice")
    tasks.TASKS["written"] = TaskEntry(
        "elsewhere.written", "Written", "length", "generation", higher_is_better=False
    )
    results = evaluate(
        Engine(tiny_model, tiny_tokenizer),
        ["mine", "written"],
        Material(MeasureSection(limit=2), file_rows(None), {}),
        model_name="tiny",
        out=lambda name: tmp_path / f"{name}.json",
    )
    assert [(r.n, r.version, list(r.metrics)) for r in results.values()] == [
        (2, "3", ["acc"]), (2, "7", ["length", "words"]),
    ]  # fmt: skip
    assert not results["written"].metrics["length"].higher_is_better
    assert {"mine.json", "written.json"} < {path.name for path in tmp_path.iterdir()}
    for name in ("elsewhere", "elsewhere.mine", "elsewhere.written"):
        sys.modules.pop(name)
