"""A user's own task: the same requests and grades as Laura's, and every mistake told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from laura.data.sources import load_rows
from laura.data.templates import chat_prompts
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer
from laura.evals import user_tasks
from laura.evals.asking import Ask
from laura.evals.scoring import choice_item
from laura.evals.tasks import arc_challenge, gsm8k
from laura.recipe.sections import MeasureSection
from laura.results.errors import DataError, RecipeError, UsageError
from laura.results.task_result import summarise

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

ARC = """
kind: multiple_choice
title: ARC, mine
data: {data}
prompt: "Question: {{question}}\\nAnswer:"
choices: choices[text]
labels: choices[label]
answer: "{{answerKey}}"
metric: acc_norm
"""
GSM8K = """
kind: exact_match
data: {data}
shots: 5
examples: {training}
prompt: "Question: {{question}}\\nAnswer:"
answer: "{{answer}}"
stop: ["Question:", "</s>", "<|im_end|>"]
max_new_tokens: 256
extract: '(-?[$0-9.,]{{2,}})|(-?[0-9]+)'
take: last
remove: [",", '\\$', '(?s).*#### ', '\\.$']
ignore_case: true
"""


def ask(tokenizer: Any = None) -> Ask:
    def no_rows(split: str) -> list[dict[str, Any]]:
        raise AssertionError(split)

    return Ask(MeasureSection(), no_rows, lambda: chat_prompts(tokenizer))


def write(path: Path, text: str, rows: list[Any] | None = None) -> Path:
    path.write_text(text, encoding="utf-8")
    if rows is not None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.with_name("rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def choice(
    folder: Path,
    rows: list[Any],
    *,
    choices: str = "options",
    answer: str = "{gold}",
    more: str = "",
) -> Any:
    text = (
        f"kind: multiple_choice\ndata: rows.jsonl\nprompt: '{{q}}'\nchoices: {choices}\n"
        f"answer: '{answer}'\n{more}\n"
    )
    task = user_tasks.load(write(folder / "mine.yaml", text, rows))
    return task, [task.module.question(row, i) for i, row in enumerate(task.rows(None))]


def test_arc_from_yaml_equals_lauras_own_file(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "arc_challenge" / "test.jsonl"
    task = user_tasks.load(write(tmp_path / "my_arc.yaml", ARC.format(data=data)))
    rows = task.rows(None)
    assert rows == load_rows("arc_challenge", "test", shared_data)
    assert (task.name, task.entry.title, task.entry.kind) == ("my_arc", "ARC, mine", "choice")
    assert (task.entry.metric, task.entry.higher_is_better) == ("acc_norm", True)
    assert task.module.METRICS == arc_challenge.METRICS
    for index, row in enumerate(rows):
        assert task.module.question(row, index) == arc_challenge.question(row, index)


def test_gsm8k_from_yaml_equals_lauras_own_file(shared_data: Path, tmp_path: Path) -> None:
    training = shared_data / "gsm8k" / "train.jsonl.gz"
    text = GSM8K.format(data=shared_data / "gsm8k" / "test.jsonl", training=training)
    task = user_tasks.load(write(tmp_path / "my_gsm8k.yaml", text))
    rows = task.rows(None)
    version, questions = task.module.prepare(rows, ask())
    theirs = gsm8k.questions(rows, load_rows("gsm8k", "train", shared_data), 5, 256)
    assert len(questions) == len(theirs) == 1319
    assert task.module.VERSION == version
    generator, texts = random.Random(4), []
    for question, other in zip(questions, theirs, strict=True):
        assert question.index == other.index
        assert question.requests == other.requests
        number = other.answer.rpartition("#### ")[2]
        number = number if generator.random() < 0.6 else str(generator.randint(0, 99))
        pieces = ["#### {n}", "${n}.", "{n}.0", "is {n}", "none", " ,", "-{n}", "1,0 {n},", "\n"]
        texts.append(" ".join(generator.sample(pieces, 3)).replace("{n}", number))
    answers = [[GenerateAnswer(text, 9, "stop")] for text in texts]
    graded = list(task.module.grades(questions, answers))
    marks = [item["exact_match"] for item, _ in graded]
    wanted = [
        int(gsm8k.matches(gsm8k.extract_flexible(text), question.answer))
        for text, question in zip(texts, theirs, strict=True)
    ]
    assert marks == wanted
    assert 200 < sum(marks) < 1200
    for (item, samples), text in zip(graded, texts, strict=True):
        (sample,) = samples
        assert sample["text"] == text and item["correct"] == bool(item["exact_match"])
        found = gsm8k.extract_flexible(text)
        assert (sample["extracted"] or gsm8k.INVALID).strip() == found


def test_shipped_examples_are_measured(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    task = user_tasks.load(EXAMPLES / "science_questions.yaml")
    questions = [task.module.question(row, i) for i, row in enumerate(task.rows(None))]
    assert [q.gold for q in questions] == [1, 2, 1, 0, 3, 1]
    items = []
    for question in questions:
        scores = engine.score(list(question.requests))
        items.append(choice_item(question, scores, task.module.METRICS, task.entry.metric))
    assert 0 <= summarise(items, task.entry.metric, True).value <= 1

    task = user_tasks.load(EXAMPLES / "small_sums.yaml")
    _, questions = task.module.prepare(task.rows(None), ask())
    assert [q.index for q in questions] == [2, 3, 4, 5, 6]  # two rows are worked examples
    prompt = questions[0].requests[0].prompt
    assert prompt.startswith("Question: What is 3 plus 4?\nAnswer: 7\n\nQuestion: What is 20")
    assert prompt.endswith("\n\nQuestion: What is 6 times 7?\nAnswer:")
    answers = [[one] for one in engine.generate([q.requests[0] for q in questions])]
    assert len(list(task.module.grades(questions, answers))) == 5
    right = [[GenerateAnswer(t, 1, "stop")] for t in ("6*7 is 42", "1001", "-3", "5", "")]
    marks = [item["exact_match"] for item, _ in task.module.grades(questions, right)]
    assert marks == [1, 1, 1, 0, 0]


def test_answers_of_many_forms(tmp_path: Path) -> None:
    options = ["red", "green", "blue"]
    rows = [{"q": "?", "options": options, "gold": gold} for gold in (2, "1", "B", "c", "green")]
    _, questions = choice(tmp_path, rows)
    assert [q.gold for q in questions] == [2, 1, 1, 2, 1]
    rows = [{"q": "?", "options": options, "gold": gold} for gold in (1, "3")]
    _, questions = choice(tmp_path, rows, more="answer_is: number")
    assert [q.gold for q in questions] == [0, 2]
    row = {"q": "?", "a": "one", "b": "two", "gold": "two"}
    _, questions = choice(tmp_path, [row], choices='["{a}", "<{b}>", "{b}"]')
    assert questions[0].gold == 2
    assert [r.continuation for r in questions[0].requests] == [" one", " <two>", " two"]
    assert questions[0].choice_characters == (3, 5, 3)


def test_an_answer_that_could_be_two_is_refused(tmp_path: Path) -> None:
    row = {"q": "1+1?", "options": ["2", "1", "0"], "gold": 2}
    with pytest.raises(DataError, match=r"rows.jsonl, line 1.*different choices.*answer_is"):
        choice(tmp_path, [row])
    _, (question,) = choice(tmp_path, [row], more="answer_is: text")
    assert question.gold == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"q": "?", "options": ["a", "b"], "gold": 7}, "'7'"),
        ({"q": "?", "options": ["a"], "gold": 0}, "list of two or more"),
        ({"q": "?", "options": ["a", ""], "gold": 0}, "empty text"),
        ({"q": None, "options": ["a", "b"], "gold": 0}, "'q' as text or a number"),
        ({"options": ["a", "b"], "gold": 0}, "has no 'q' (its fields are options, gold)"),
        ({"q": "?", "options": ["a", {}], "gold": 0}, "'options' as text or a number"),
        ({"q": "?", "options": ["a", "b"], "gold": True}, "'answer' as text or a number"),
        ("[1]", "must be a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_bad_rows_name_file_and_line(row: Any, words: str, tmp_path: Path) -> None:
    good = {"q": "?", "options": ["a", "b"], "gold": 0}
    with pytest.raises(DataError) as caught:
        choice(tmp_path, [good, "", row])
    assert f"{tmp_path / 'rows.jsonl'}, line 3" in str(caught.value)
    assert words in str(caught.value)


def test_all_faults_of_a_yaml_file_are_listed_with_lines(tmp_path: Path) -> None:
    text = """kind: exact_match
data: rows.jsonl
prompt: "{question.__class__}{x!r}"
answer: "{answer"
stop: "\\n"
max_new_tokens: 0
extract: "(["
shotz: 3
"""
    with pytest.raises(RecipeError) as caught:
        user_tasks.load(write(tmp_path / "mine.yaml", text))
    faults = {fault.path: (fault.line, fault.problem) for fault in caught.value.faults}
    assert {path: line for path, (line, _) in faults.items()} == {
        "prompt": 3, "answer": 4, "stop": 5, "max_new_tokens": 6, "extract": 7, "shotz": 8,
    }  # fmt: skip
    assert "did you mean shots" in faults["shotz"][1]
    with pytest.raises(RecipeError, match="must be multiple_choice or exact_match"):
        user_tasks.load(write(tmp_path / "mine.yaml", "kind: essay\n"))
    with pytest.raises(RecipeError) as caught:
        user_tasks.load(write(tmp_path / "mine.yaml", "kind: multiple_choice\nlabels: a\n"))
    assert [f.path for f in caught.value.faults] == ["data", "prompt", "choices", "answer"]
    with pytest.raises(RecipeError, match="cannot be read"):
        user_tasks.load(tmp_path / "nowhere.yaml")


def test_templates_read_fields_and_nothing_else() -> None:
    from laura.evals.field_templates import FieldFault, Template

    row = {"a": "x", "b": [{"c d": 5}], "e.f": 1.5}
    assert Template.parse("{{{a}}} {b[0][c d]} {e.f}").fill(row) == "{x} 5 1.5"
    for text in ("{", "}", "{}", "{a:>9}", "{a!r}", "{a[}", "{[0]}"):
        with pytest.raises(ValueError):
            Template.parse(text)
    for text in ("{a.__class__}", "{b[1]}", "{b[x]}", "{a[0]}", "{b[-1]}", "{b}", "{b[0]}"):
        with pytest.raises(FieldFault):
            Template.parse(text).fill(row)


def test_shots_in_chat_are_earlier_turns(tmp_path: Path, tiny_tokenizer: Any) -> None:
    text = (
        "kind: exact_match\ndata: rows.jsonl\nprompt: '{q}'\nanswer: '{a}'\nshots: 1\n"
        "example_answer: 'It is {a}'\nstop: []\nmax_new_tokens: 4\nchat: true\n"
    )
    rows = [{"q": f"q{i}", "a": i} for i in range(3)]
    task = user_tasks.load(write(tmp_path / "mine.yaml", text, rows))
    _, questions = task.module.prepare(task.rows(None)[:1], ask(tiny_tokenizer))
    (question,) = questions
    assert question.requests[0].prompt == (
        "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\nIt is 0<|im_end|>\n"
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (question.index, question.answer) == (1, "1")
    task = user_tasks.load(write(tmp_path / "mine.yaml", text.replace("shots: 1", "shots: 3")))
    with pytest.raises(DataError, match="3 worked examples"):
        task.rows(None)


def test_version_changes_with_file_and_rows(tmp_path: Path) -> None:
    rows = [{"q": "?", "options": ["a", "b"], "gold": 0}] * 2
    first = choice(tmp_path, rows)[0].module.VERSION
    assert choice(tmp_path, rows)[0].module.VERSION == first
    changed_rows = choice(tmp_path, [*rows, rows[0]])[0].module.VERSION
    changed_file = choice(tmp_path, rows, more="delimiter: '  '")[0].module.VERSION
    assert len({first, changed_rows, changed_file}) == 3


def test_names_of_results(tmp_path: Path) -> None:
    assert [user_tasks.is_user_task(name) for name in ("a.yaml", "b/c.py", "gsm8k", "d.yml")] == [
        True, True, False, True,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="is a task of Laura"):
        user_tasks.load(tmp_path / "gsm8k.yaml")
    with pytest.raises(UsageError, match="cannot be a name"):
        user_tasks.load(tmp_path / "my task.py")


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


def test_python_files(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = [{"q": "a", "options": ["x", "y"], "gold": 1}] * 2
    task = user_tasks.load(write(tmp_path / "mine.py", PYTHON_CHOICE, rows))
    assert (task.entry.kind, task.entry.title, task.entry.metric) == ("choice", "Mine", "acc")
    questions = [task.module.question(row, i) for i, row in enumerate(task.rows(None))]
    assert [r.context for r in questions[1].requests] == ["a x", "a y"]
    assert task.module.VERSION.startswith("3; task ")
    engine = Engine(tiny_model, tiny_tokenizer)
    scores = engine.score(list(questions[0].requests))
    assert choice_item(questions[0], scores, task.module.METRICS, "acc")["gold"] == 1

    task = user_tasks.load(write(tmp_path / "written.py", PYTHON_GENERATION))
    assert (task.entry.kind, task.entry.metric, task.entry.higher_is_better) == (
        "generation", "length", False,
    )  # fmt: skip
    version, questions = task.module.prepare(task.rows(None), ask())
    assert version.startswith("7; task ") and len(questions) == 2
    answers = [[GenerateAnswer("one", 1, "end"), GenerateAnswer("two", 1, "end")]] * 2
    (item, samples), _ = task.module.grades(questions, answers)
    assert (item["length"], len(samples)) == (3, 2)
    other = user_tasks.load(write(tmp_path / "written.py", PYTHON_GENERATION + "\n# changed\n"))
    assert other.module.prepare(other.rows(None), ask())[0] != version


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["is no task", "question", "prepare"]),
        ("def question(row, index): pass", ["VERSION", "METRICS", "ROWS or rows()"]),
        ("grades = 3\nMETRICS = ()", ["lacks prepare, ROWS or rows()", "grades must be a function",
                                      "METRICS must be a tuple"]),
        ("VERSION, METRICS, ROWS = '1', ('f1',), 3\nMETRIC = 'acc'\ndef question(r, i): pass",
         ["ROWS must be text", "f1", "METRIC must be one"]),
        ("def question(:", ["does not run", "line 1"]),
        ("\nimport nowhere_to_be_found", ["does not run", "nowhere_to_be_found", "line 2"]),
    ],
)  # fmt: skip
def test_faulty_python_files_are_told_in_words(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        user_tasks.load(write(tmp_path / "mine.py", text))
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_a_users_function_that_fails_is_told_with_row_and_line(tmp_path: Path) -> None:
    rows = [{"q": "a", "options": ["x", "y"], "gold": 1}, {"q": "a"}]
    task = user_tasks.load(write(tmp_path / "mine.py", PYTHON_CHOICE, rows))
    found = task.rows(None)
    with pytest.raises(DataError, match=r"question\(\) failed on .*line 2: KeyError.*\(line 9\)"):
        task.module.question(found[1], 1)
    wrong = PYTHON_CHOICE.replace('row["gold"]', "5")
    task = user_tasks.load(write(tmp_path / "mine.py", wrong, rows))
    with pytest.raises(DataError, match="gold 5"):
        task.module.question(task.rows(None)[0], 0)
    text = PYTHON_GENERATION.replace('"words": len(texts), ', "")
    task = user_tasks.load(write(tmp_path / "mine.py", text))
    _, questions = task.module.prepare(task.rows(None), ask())
    with pytest.raises(DataError, match="without words"):
        list(task.module.grades(questions, [[GenerateAnswer("a", 1, "end")]] * 2))
    for old, new in (("range(2)", "()"), ("index: int", "number: int")):
        text = PYTHON_GENERATION.replace(old, new)
        task = user_tasks.load(write(tmp_path / "mine.py", text))
        with pytest.raises(DataError, match="needs index"):
            task.module.prepare(task.rows(None), ask())
    text = PYTHON_GENERATION.replace("def rows():", "def rows():\n    return [1]\ndef others():")
    with pytest.raises(DataError, match="must give dictionaries"):
        user_tasks.load(write(tmp_path / "mine.py", text)).rows(None)
