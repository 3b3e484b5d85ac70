"""Cohorts in a study: which runs go together, and that nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BudgetSection, Recipe
from laura.results.store import RunStore, read_json
from laura.study import workers
from laura.study.runs import RunSpec, cohorts, remark
from tests.study.carried_out import ROOT, command, compare, finish, kill_at_random
from tests.study.conftest import RECIPE, one_thread
from tests.study.test_workers import Heard


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Whatever the machine, so that a run in a worker rounds as one in this process does.
    monkeypatch.setattr(workers, "threads", lambda: 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with one_thread():
        yield


def a_recipe(text: str, cohort: int) -> Recipe:
    return parse_recipe(text, [f"train.cohort={cohort}"])


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """A tiny study as it is without cohorts, and its recipe's text."""
    text = RECIPE.format(model=tiny_folder, folder=tiny_data).replace("[0, 1]", "[0]")
    text = text.replace("[1e-2, 3e-2]", "[1e-2, 2e-2, 3e-2]").replace("[1e-3, 3e-3]", "[1e-3]")
    folder = tmp_path_factory.mktemp("study") / "apart"
    with one_thread():
        return text, folder, compare(parse_recipe(text), study=folder)


def test_lora_runs_that_differ_in_the_rate_alone_go_together(recipe_text: str) -> None:
    recipe = a_recipe(recipe_text, 3)
    budgets = [BudgetSection(tokens=[600]), BudgetSection(tokens=[1200])]
    specs = [
        RunSpec(arm, rate, seed, budget)
        for arm in ("full", "lora")
        for rate in (1e-3, 2e-3, 3e-3, 4e-3)
        for seed in (0, 1)
        for budget in budgets
    ]
    groups = cohorts(specs, recipe)
    assert sorted(map(str, specs)) == sorted(str(spec) for group in groups for spec in group)
    for group in groups:
        assert len({(spec.arm, spec.seed, str(spec.budget)) for spec in group}) == 1
        assert len({spec.learning_rate for spec in group}) == len(group)
        # Four with at most three are two and two, not three and one.
        assert len(group) == (1 if group[0].arm == "full" else 2)
    assert [group[0].arm for group in groups] == ["full"] * 16 + ["lora"] * 8
    assert cohorts(specs, a_recipe(recipe_text, 1)) == [[spec] for spec in specs]
    assert [len(g) for g in cohorts(specs, a_recipe(recipe_text, 99)) if len(g) > 1] == [4] * 4
    # No worker is left idle: two workers get two each, three one, one and two.
    for count, sizes in ((2, [2, 2]), (3, [1, 1, 2]), (9, [1, 1, 1, 1])):
        groups = cohorts(specs, a_recipe(recipe_text, 8), count)
        assert [len(g) for g in groups if g[0].arm == "lora"] == sizes * 4


def test_who_asks_for_cohorts_where_there_are_none_is_told(recipe_text: str) -> None:
    specs = [RunSpec("full", rate, 0, BudgetSection(epochs=[1])) for rate in (1e-3, 2e-3)]
    said = remark(specs, a_recipe(recipe_text, 8))
    assert said and "train.cohort is 8" in said and "trained by itself" in said
    assert remark(specs, a_recipe(recipe_text, 1)) is None
    pair = [RunSpec("lora", rate, 0, BudgetSection(epochs=[1])) for rate in (1e-3, 2e-3)]
    assert remark(pair, a_recipe(recipe_text, 8)) is None


@pytest.mark.parametrize(
    ("count", "rates", "trainings"), [(1, "0.01, 0.02, 0.03", 4), (2, "0.02, 0.03", 6)]
)
def test_a_study_with_cohorts_is_the_study_without(
    apart: Any, tmp_path: Path, count: int, rates: str, trainings: int
) -> None:
    text, folder, summary = apart
    heard = Heard()
    study = tmp_path / "cohorts"
    assert compare(a_recipe(text, 8), study=study, workers=count, progress=heard) == summary
    assert heard.advanced["study"] == 8
    # The rates of LoRA are a cohort for each of two budgets.
    training = [title for title in heard.bars if title.startswith("training ")]
    assert training.count(f"training lora at {rates}") == 2 and len(training) == trainings
    assert any(f"lora, rates {rates}, seed 0" in text for text in heard.said)
    costs = json.loads((study / "cost.json").read_text())["runs"]
    together = [r["learning_rate"] for r in costs if r["cohort"] > 1 and r["arm"] == "lora"]
    assert sorted(set(together)) == [float(rate) for rate in rates.split(", ")]
    for run in folder.glob("runs/*"):
        other = study / "runs" / run.name
        losses = [[row["loss"] for row in RunStore(f).metrics()] for f in (run, other)]
        assert losses[0] == losses[1]


@pytest.mark.slow
def test_killed_at_random_moments_gives_the_same_summary(
    apart: Any, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Four SIGKILLs of cohorts, the last of them parted, then the same command to its end."""
    text, _, summary = apart
    (tmp_path / "recipe.yaml").write_text(text)
    study = tmp_path / "study"

    def together(most: int) -> dict[str, Any]:
        return command("compare", tmp_path / "recipe.yaml", "--out", study, "--workers", 1,
                       "--set", f"train.cohort={most}")  # fmt: skip

    started = [together(most) for most in (8, 8, 1, 8)]
    assert kill_at_random(started, lambda: bool([*study.glob("runs/*/resume")]), 3, 1.5)
    finish(together(8))
    assert read_json(study / "summary.json") == summary
