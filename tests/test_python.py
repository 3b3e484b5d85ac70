"""`import laura`: what Python users call; cheap to import, typed, the same as the commands."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import laura
from laura.recipe.sections import MeasureSection, Recipe
from laura.results.errors import MissingExtraError, UsageError
from laura.results.schema import Summary
from laura.results.store import SeriesStore, write_json

ROOT = Path(__file__).resolve().parents[1]
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "base": {"model": "somewhere"},
    "data": {"train": "a.jsonl", "test": "b.jsonl", "source_text": "c.jsonl"},
    "budget": {"epochs": [1]},
    "arms": {"lora": {"method": "lora"}},
}
SCORE = {"value": 0.5, "stderr": 0.1, "n": 10}
SUMMARY: dict[str, Any] = {
    "format": 2,
    "name": "tiny",
    "base": {"model": "m", "fingerprint": "f", "scores": {"gsm8k": SCORE}},
    "measure": {"learning": ["gsm8k"], "forgetting": []},
    "tasks": {"gsm8k": {"name": "gsm8k", "title": "G", "unit": "share", "higher_is_better": True}},
    "budget": {"unit": "epochs", "points": [1]},
    "arms": [],
    "runs": [{"id": "a", "arm": "lora", "learning_rate": 1e-3, "seed": 0, "state": "done"}],
    "points": [
        {
            "run": "a", "arm": "lora", "learning_rate": 1e-3, "seed": 0, "budget": 1, "tokens": 9,
            "step": 3, "scores": {"gsm8k": {**SCORE, "value": 0.75}},
            "changes": {"gsm8k": {"value": 0.25, "stderr": 0.05, "n": 10}},
        }
    ],
}  # fmt: skip

NOTHING_YET = {**SUMMARY, "runs": [], "points": []}


def write_study(folder: Path) -> Path:
    write_json(folder / "summary.json", SUMMARY)
    return folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function in the place of one of a module that would import torch."""

    def put(module: str, **functions: Any) -> None:
        fake = types.ModuleType(module)
        vars(fake).update(functions)
        monkeypatch.setitem(sys.modules, module, fake)

    return put


def test_importing_it_is_nearly_nothing() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import laura; took = time.perf_counter() - start\n"
        "assert set(laura.__all__) <= set(dir(laura))\n"
        "assert not hasattr(laura, 'absent')\n"
        "heavy = {'torch', 'pydantic', 'typer', 'numpy', 'laura.api'} & set(sys.modules)\n"
        "laura.compare, laura.recommend, laura.read_study\n"
        "heavy |= {'torch', 'transformers', 'pandas', 'altair'} & set(sys.modules)\n"
        "print(took, sorted(heavy))"
    )
    took = []
    for _ in range(3):  # the machine may be busy
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds, heavy = ended.stdout.split(maxsplit=1)
        assert heavy.strip() == "[]"
        took.append(float(seconds))
    assert min(took) < 0.1


def test_every_name_is_there_also_beside_the_rooms() -> None:
    import laura.training.loop  # a room called train would stand in the function's place

    for name in laura.__all__:
        assert getattr(laura, name).__doc__
    assert not isinstance(laura.train, types.ModuleType)


def test_compare_takes_a_file_a_name_or_a_dictionary(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAURA_DATA", raising=False)
    asked: list[Recipe] = []
    data: list[Path | None] = []

    def carry_out(recipe: Recipe, *, study: Path, **named: Any) -> None:
        asked.append(recipe)
        assert (named["workers"], named["confirm"]) == (None, [("lora", 1e-3)])
        data.append(named["data_dir"])
        write_json(study / "summary.json", NOTHING_YET)

    stand_in("laura.study.compare", compare=carry_out)
    rates = {**RECIPE, "arms": {"lora": {"method": "lora", "learning_rates": [1e-3]}}}
    Path("mine.yaml").write_text(json.dumps(rates))
    sets, confirm = ["seeds=[7]"], ["lora@1e-3"]
    given = [rates, "mine.yaml", Path("mine.yaml")]
    found = [laura.compare(one, overrides=sets, confirm=confirm) for one in given]
    assert asked[0] == asked[1] == asked[2] and asked[0].seeds == [7]
    for one in found:
        assert isinstance(one, laura.StudyResults)
        assert one.folder == Path("studies/tiny") and one.report == one.folder / "report.html"
        assert one.report.is_file() and one.summary == Summary(**NOTHING_YET)
    with pytest.raises(laura.RecipeError, match="seeds") as told:
        laura.compare({**rates, "seeds": [], "train": {"clip": "no"}})
    assert [(one.path, one.line) for one in told.value.faults] == [
        ("train.clip", None), ("seeds", None),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="a series is given as a file"):
        laura.compare({"name": "x", "settings": {}})
    with pytest.raises(UsageError, match="there is no recipe 'absent'"):
        laura.compare("absent")
    with pytest.raises(UsageError, match="no such setting; it is a recipe"):
        laura.compare(rates, setting="code")
    with pytest.raises(UsageError, match="no data folder nowhere"):
        laura.compare(rates, data_dir="nowhere")
    laura.compare(rates, data_dir=".", confirm=confirm)
    assert data == [None, None, None, Path()]


def test_train_and_evaluate_hand_everything_on(stand_in: Any, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def carry_out(recipe: Recipe, **named: Any) -> dict[str, Any]:
        seen.update(named)
        known = {"id": "a1", "state": "done", "folder": "x", "checkpoints": ["x/1"]}
        return {"runs": [known], "summary": Summary(**SUMMARY)}

    def evaluate_model(model: str, **named: Any) -> dict[str, Any]:
        seen.update(named)
        metric = {"value": 0.25, "stderr": 0.01, "higher_is_better": True}
        task = {"gsm8k": {"file": "x", "n": 10, "metrics": {"exact_match": metric}}}
        return {"base": task, "poet": task} if named["adapters"] else task

    stand_in("laura.study.compare", train=carry_out)
    made = laura.train(RECIPE, "lora", seed=2, out=tmp_path, device="cpu")
    assert (seen["arm"], seen["seed"], seen["study"], seen["device"]) == (
        "lora",
        2,
        tmp_path,
        "cpu",
    )
    assert made.runs[0].checkpoints == ["x/1"] and made.summary.name == "tiny"

    stand_in("laura.study.evaluation", evaluate_model=evaluate_model)
    found = laura.evaluate("somewhere", ["gsm8k"], limit=10, overrides=["measure.gsm8k_shots=0"])
    assert found.models["base"]["gsm8k"].metrics["exact_match"].value == 0.25
    section: MeasureSection = seen["section"]
    assert (section.limit, section.gsm8k_shots) == (10, 0)
    for named, limit in (
        ({}, None), ({"preset": "quick"}, 200), ({"preset": "quick", "limit": 50}, 50),
        ({"overrides": ["measure.preset=quick"]}, 200),
    ):  # fmt: skip
        laura.evaluate("somewhere", ["gsm8k"], **named)  # type: ignore[arg-type]
        assert seen["section"].limit == limit, named
    both = laura.evaluate("somewhere", ["gsm8k"], adapters={"poet": "folder"}, base=False)
    assert (seen["adapters"], seen["with_base"]) == ({"poet": Path("folder")}, False)
    assert list(both.to_pandas()["model"]) == ["base", "poet"]


def test_a_study_as_a_data_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = laura.read_study(write_study(tmp_path / "study"))
    assert study.judgement is None and study.report is None
    rows = study.to_pandas().to_dict("records")
    assert [(one["arm"], one["task"], one["score"]) for one in rows] == [
        ("base", "gsm8k", 0.5), ("lora", "gsm8k", 0.75),
    ]  # fmt: skip
    point = {"learning_rate": 1e-3, "seed": 0, "tokens": 9, "change": 0.25, "change_stderr": 0.05}
    assert rows[1].items() >= point.items()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        study.to_pandas()


def test_a_series_is_read_and_drawn_setting_by_setting(tmp_path: Path) -> None:
    SeriesStore(tmp_path).write("both", ["code", "math", "open"])
    write_study(SeriesStore(tmp_path).setting("code").folder)
    SeriesStore(tmp_path).setting("math").folder.mkdir(parents=True)
    SeriesStore(tmp_path).setting("math").summary_file.write_text("{")
    found = laura.read_study(tmp_path)
    assert isinstance(found, laura.SeriesResults)
    assert list(found.settings) == ["code"], "math is damaged, open has nothing yet"
    assert set(found.to_pandas()["setting"]) == {"code"}
    with pytest.raises(laura.LauraError, match="nothing to report yet"):
        laura.read_study(ROOT / "tests")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({}, "say what is wanted"),
        ({"max_forgetting": 5}, "has no unit: write 5%"),
        ({"max_forgetting": "much"}, "takes a bound"),
        ({"min_learning": 0.1, "memory": "big"}, "takes a size"),
    ],
)
def test_bounds_that_cannot_be_meant(named: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        laura.recommend(tmp_path, **named)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "python.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {}
    for number, text in enumerate(code):
        exec(compile(text, f"cell {number}", "exec"), namespace)
    assert isinstance(namespace["study"], laura.StudyResults)
    assert len(code) >= 5
