"""Extras of a whole study: where they are measured, by whom, and what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.results.task_result import TaskResult
from laura.study import workers
from tests.study.carried_out import ROOT, compare, stamps

RECIPE = """
name: drawn
base: {model: micro}
domain: code
data:
  train: {source: micro-code, split: train, limit: 60}
  validation: {source: micro-code, split: validation, limit: 8}
  test: {source: micro-code, split: test}
  source_text: micro-source
budget: {tokens: [512, 1024]}
arms:
  full: {method: full, learning_rates: [5e-4, 1e-3]}
  lora: {method: lora, rank: 4, learning_rates: [4e-3]}
train: {schedule: trapezoidal, batch_tokens: 256, row_tokens: 256}
seeds: [0]
measure:
  learning: [target_loss]
  forgetting: [source_loss, kl, kl_reverse, kl_source, kl_reverse_source]
  limit: 4
  loss_documents: 4
  loss_tokens: 64
"""
EXTRAS = [
    "measure.extras.diversity={task: micro_code, samples: 3, temperature: 0.7}",
    "measure.extras.passk={task: micro_math, samples: 2, temperature: 1.0, k: [2], at: all, "
    "limit: 2}",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study carried out without extras, and then with them, by two workers."""
    folder = tmp_path_factory.mktemp("study") / "drawn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "threads", lambda: 1)
        patch.setenv("PYTHONPATH", str(ROOT))
        plain = compare(parse_recipe(RECIPE), study=folder)
        before = stamps(folder)
        recipe = parse_recipe(RECIPE, EXTRAS)
        summary = compare(recipe, study=folder, workers=2)
    return recipe, folder, plain, summary, before


def measured(folder: Path, name: str) -> set[tuple[str, str]]:
    found = folder.glob(f"**/evals/**/{name}.json")
    return {(path.relative_to(folder).parts[1], path.parent.name) for path in found}


def test_extras_are_measured_on_the_base_and_at_each_best_rate(study: Any) -> None:
    recipe, folder, _, summary, _ = study
    selected = [p for p in summary["points"] if p["selected"]]
    assert len(selected) == 4  # two arms, two budgets
    every = {(p["run"], f"{p['step']:08d}") for p in selected}
    last = {(p["run"], f"{p['step']:08d}") for p in selected if p["budget"] == 1024}
    assert measured(folder, "passk") == {("evals", "evals"), *every}
    assert measured(folder, "diversity") == {("evals", "evals"), *last}
    result = TaskResult.read(folder / "base" / "evals" / "diversity.json")
    assert result.n == 4 and result.items[0]["samples"] == 3
    assert TaskResult.read(folder / "base" / "evals" / "passk.json").n == 2
    analysis = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    assert [len(analysis[part]) for part in ("diversity", "pass_at_k")] == [8, 8]
    assert analysis["diversity"][0]["arm"] is None
    assert {row["measure"] for row in analysis["drift"]} == set(recipe.measure.forgetting[1:])
    assert not [gap for gap in analysis["gaps"] if "measured" in gap]


def test_adding_them_repeats_nothing_and_changes_no_score(study: Any) -> None:
    _, folder, plain, summary, before = study
    after = stamps(folder)
    assert all(after[path] == stamp for path, stamp in before.items())
    assert summary == plain


def test_the_four_divergences_agree_with_one_another(study: Any) -> None:
    _, _, _, summary, _ = study
    for point in summary["points"]:
        values = {name: score["value"] for name, score in point["scores"].items()}
        for name in ("kl", "kl_reverse", "kl_source", "kl_reverse_source"):
            assert values[name] > 0
            assert summary["base"]["scores"][name]["value"] == 0
        assert values["kl"] != values["kl_reverse"] and values["kl"] != values["kl_source"]


def test_what_is_gone_or_changed_is_measured_again_alone(study: Any) -> None:
    recipe, folder, _, summary, _ = study
    one = next(p for p in summary["points"] if p["selected"] and p["budget"] == 1024)
    path = folder / "runs" / one["run"] / "evals" / f"{one['step']:08d}" / "diversity.json"
    whole, known = path.read_bytes(), stamps(folder)
    path.unlink()
    # In this process: what a worker drew is drawn again, sample for sample.
    assert compare(recipe, study=folder, workers=1) == summary
    assert path.read_bytes() == whole
    changed = {p for p, stamp in stamps(folder).items() if known[p] != stamp}
    assert {p.name.split(".")[0] for p in changed} == {"diversity"}
    assert len({p.parent for p in changed if p.suffix == ".json"}) == 1
    other = parse_recipe(RECIPE, [EXTRAS[0].replace("0.7", "0.9"), EXTRAS[1]])
    known = stamps(folder)
    compare(other, study=folder, workers=1)
    changed = {p for p, stamp in stamps(folder).items() if known[p] != stamp}
    assert {p.name.split(".")[0] for p in changed} == {"diversity"}
    assert "temperature 0.9" in TaskResult.read(path).version
