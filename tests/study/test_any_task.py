"""A comparison whose metrics are a user's own task file and a task of lm-eval."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from laura.engine.engine import Engine
from laura.evals.runner import Material, file_rows, plan_task
from laura.recipe.reading import parse_recipe, recipe_yaml
from laura.recipe.sections import MeasureSection, Recipe
from laura.report.figures import CHARTS
from laura.report.html import write_report
from laura.report.study import read_study
from laura.report.tables import summary_table
from laura.results.store import StudyStore
from laura.results.task_result import TaskResult
from laura.study.summary import gather
from tests.study.carried_out import compare

# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]

SUMS = '''
"""Sums with three choices."""
from laura.engine.requests import ScoreRequest
from laura.evals.scoring import ChoiceQuestion

VERSION, METRICS, METRIC = "1", ("acc", "acc_norm"), "acc_norm"
TITLE, ROWS = "Sums, mine", "sums.jsonl"


def question(row, index):
    requests = tuple(ScoreRequest(row["q"], f" {option}") for option in row["options"])
    return ChoiceQuestion(index, requests, row["gold"], tuple(map(len, row["options"])))
'''
LENGTHS = '''
"""How long an answer is: a number that is no share, and better when small."""
from dataclasses import dataclass
from laura.engine.requests import GenerateRequest

METRICS = ("empty", "length")
METRIC = "length"
HIGHER_IS_BETTER = False
TITLE = "Length"


@dataclass(frozen=True)
class Question:
    index: int
    requests: tuple


def rows():
    return [{"q": word} for word in ("the cat", "a dog", "on the mat")]


def prepare(rows, ask):
    asked = [GenerateRequest(row["q"], stop=("z",), max_new_tokens=8) for row in rows]
    return "1", [Question(i, (one,)) for i, one in enumerate(asked)]


def grades(questions, answers):
    for question, (answer,) in zip(questions, answers):
        length = len(answer.text) + 2.0
        yield {"index": question.index, "empty": 0, "length": length}, [
            {"index": question.index, "text": answer.text}
        ]
'''
LEARNING, FORGETTING = ["my_sums"], ["lm_eval.here_choice", "lengths", "kl"]


def write_files(folder: Path) -> None:
    """The user's two task files, and lm-eval's."""
    from tests.evals.lm_eval_rows import write_tasks

    write_tasks(folder / "lm_eval")
    (folder / "my_sums.py").write_text(SUMS, encoding="utf-8")
    (folder / "lengths.py").write_text(LENGTHS, encoding="utf-8")
    rows = [
        {"q": f"{a} + {b}?", "options": [str(a + b), str(a + b + 1), str(b)][a % 3 :], "gold": 0}
        for a, b in ((3, 8), (4, 7), (6, 6), (7, 8), (9, 9), (4, 4), (3, 4))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "sums.jsonl").write_text(lines, encoding="utf-8")


def recipe_of(recipe_text: str, folder: Path, data_dir: Path) -> Recipe:
    settings = [
        "seeds=[0]",
        "budget.tokens=[600, 1200]",
        "arms.full.learning_rates=[3e-3]",
        "arms.lora.learning_rates=[3e-2]",
        "measure.learning=[my_sums.py]",
        f"measure.forgetting=['lm_eval:here_choice', {folder / 'lengths.py'}, kl]",
        f"measure.lm_eval_include={folder / 'lm_eval'}",
    ]
    return parse_recipe(recipe_text, settings, data_dir=data_dir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """A finished study; one of the user's files is found in the data folder."""
    from tests.study.conftest import RECIPE

    folder = tmp_path_factory.mktemp("tasks")
    write_files(folder)
    text = RECIPE.format(model=tiny_folder, folder=tiny_data)
    recipe = recipe_of(text, folder, folder)
    study = folder / "study"
    return recipe, study, compare(recipe, study=study, data_dir=folder), folder


def test_the_summary_tells_what_stands_in_the_results(finished: Any) -> None:
    _, study, summary, _ = finished
    assert summary["measure"] == {"learning": LEARNING, "forgetting": FORGETTING}
    store = StudyStore(study)
    metrics = {"my_sums": "acc_norm", "lm_eval.here_choice": "acc", "lengths": "length"}
    assert len(summary["points"]) == 4
    for name, metric in metrics.items():
        base = TaskResult.read(store.base_evaluation(name))
        told = summary["base"]["scores"][name]
        assert told["value"] == base.metrics[metric].value
        assert told["value"] == pytest.approx(np.mean([item[metric] for item in base.items]))
        for point in summary["points"]:
            tuned = TaskResult.read(store.run(point["run"]).evaluation(point["step"], name))
            score = point["scores"][name]
            found = tuned.metrics[metric]
            assert (score["value"], score["stderr"]) == (found.value, found.stderr)
            assert score["n"] == len(tuned.items) == summary["tasks"][name]["n"]
            moved = point["changes"][name]
            pairs = zip(tuned.items, base.items, strict=True)
            differences = [after[metric] - before[metric] for after, before in pairs]
            assert moved["value"] == pytest.approx(np.mean(differences))
            error = np.std(differences, ddof=1) / np.sqrt(len(differences))
            assert moved["stderr"] == pytest.approx(error)
    changes = [p["changes"] for p in summary["points"]]
    assert all(any(change[name]["value"] for change in changes) for name in metrics)
    for point in summary["points"]:
        # The only share of right answers; a length is averaged with nothing.
        mean = point["scores"]["mean"]["value"]
        assert mean == point["scores"]["lm_eval.here_choice"]["value"]


def test_title_unit_and_direction_come_from_the_task(finished: Any) -> None:
    _, _, summary, _ = finished
    known = {
        name: tuple(task[key] for key in ("title", "metric", "unit", "higher_is_better"))
        for name, task in summary["tasks"].items()
        if name not in ("mean", "validation_loss")
    }
    assert known == {
        "my_sums": ("Sums, mine, acc_norm", "acc_norm", "share", True),
        "lm_eval.here_choice": ("here_choice (lm-eval), acc", "acc", "share", True),
        "lengths": ("Length, length", "length", "score", False),
        "kl": ("KL(base || tuned) on target inputs", "nats_per_token", "nats per token", False),
    }


def test_report_charts_and_tables_show_them(finished: Any) -> None:
    _, study, _, _ = finished
    page = write_report(study).read_text(encoding="utf-8")
    for text in ("Sums, mine, acc_norm", "here_choice (lm-eval), acc", "Length, length"):
        assert text in page
    read = read_study(study)
    panels = {chart.name: [panel.name for panel in chart.draw(read)] for chart in CHARTS}
    assert panels["learning_curves"] == ["my_sums", "mean", "lengths"]
    assert panels["drift"] == ["kl"]
    assert panels["learning_rates"] == ["validation_loss", "my_sums", "mean", "lengths"]
    assert panels["forgetting_by_task"] == ["accuracies", "losses", "of-lengths"]
    assert len(panels["tradeoff"]) == 3
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_table(read))
    heading = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in heading for word in ("Sums (%)", "Length", "(score)", "KL"))
    for name in (name for name, drawn in panels.items() if drawn):
        assert (study / "figures" / f"{name}.svg").stat().st_size > 1000


@pytest.mark.slow
def test_a_changed_file_is_measured_again_and_nothing_is_trained(
    finished: Any, tmp_path: Path, recipe_text: str
) -> None:
    write_files(tmp_path)
    recipe = recipe_of(recipe_text, tmp_path, tmp_path)
    study = tmp_path / "study"
    first = compare(recipe, study=study, data_dir=tmp_path)
    whole = finished[2]
    assert [p["scores"] for p in first["points"]] == [p["scores"] for p in whole["points"]]
    trained = {p: p.stat().st_mtime_ns for p in study.rglob("done.json")}
    kept = {p: p.stat().st_mtime_ns for p in study.rglob("lm_eval.here_choice.json")}
    assert len(trained) == 4 and len(kept) == 5
    changed = LENGTHS.replace("+ 2.0", "+ 3.0")
    (tmp_path / "lengths.py").write_text(changed, encoding="utf-8")
    second = compare(recipe, study=study, data_dir=tmp_path, workers=2)
    for before, after in zip(first["points"], second["points"], strict=True):
        one, other = (point["scores"]["lengths"]["value"] for point in (before, after))
        assert other == pytest.approx(one + 1)
        assert before["changes"]["lengths"] == after["changes"]["lengths"]
    assert trained == {p: p.stat().st_mtime_ns for p in study.rglob("done.json")}
    assert kept == {p: p.stat().st_mtime_ns for p in study.rglob("lm_eval.here_choice.json")}


def test_a_result_of_the_file_before_it_changed_counts_as_not_measured(
    finished: Any, tmp_path: Path
) -> None:
    recipe, study, _, _ = finished
    shutil.copytree(study, tmp_path / "study")
    old = sorted((tmp_path / "study").glob("runs/*/evals/*/lengths.json"))[0]
    value = json.loads(old.read_text())
    old.write_text(json.dumps({**value, "version": "another file's"}))
    points = gather(StudyStore(tmp_path / "study"), recipe).points
    assert sum("lengths" in point.results for point in points) == len(points) - 1
    assert all("my_sums" in point.results for point in points)


def test_a_files_mistake_is_told_before_data_are_read(
    finished: Any, tmp_path: Path, recipe_text: str
) -> None:
    from laura.results.errors import UsageError

    write_files(tmp_path)
    recipe = recipe_of(recipe_text, tmp_path, tmp_path)
    text = recipe_yaml(recipe).replace("here_choice", "here_chioce")
    with pytest.raises(UsageError, match=r"has no task 'here_chioce'; did you mean.*here_choice"):
        compare(parse_recipe(text, data_dir=tmp_path), study=tmp_path / "a", data_dir=tmp_path)
    (tmp_path / "my_sums.py").write_text(SUMS.replace("def question", "def asked"))
    with pytest.raises(UsageError, match="is no task: define VERSION, METRICS, question"):
        compare(recipe, study=tmp_path / "b", data_dir=tmp_path)
    assert not list(tmp_path.glob("?/corpus")) and not list(tmp_path.glob("?/study.json"))


def test_the_leading_metric_stands_first(
    finished: Any, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    folder = finished[3]
    material = Material(MeasureSection(), file_rows(None), {}, data_dir=folder)
    engine = Engine(tiny_model, tiny_tokenizer)
    plan = plan_task(engine, "my_sums.py", material)
    assert list(plan.measure(engine, [None])[0].directions) == ["acc_norm", "acc"]
