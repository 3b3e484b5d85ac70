"""A search on the tiny model: what is tried, chosen, stopped early, and survives kills."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.report.html import write_report
from laura.results.errors import UsageError
from laura.results.store import StudyStore, read_json
from laura.study import workers
from tests.study.carried_out import (
    ROOT,
    best_rate,
    command,
    compare,
    finish,
    judgement,
    kill_at_random,
    stamps,
    train,
    write_summary,
)
from tests.study.conftest import RECIPE

SETTINGS = [
    "arms.lora={method: lora, learning_rates: [1e-3, 1], grid: {rank: [2, 4]}}",
    "search={sampler: tpe, trials: 7, pruner: median, max_forgetting: 0.05}",
    "train.schedule=trapezoidal",
    "seeds=[0, 1]",
]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """A finished search, shared by the tests that only read it."""
    recipe = parse_recipe(RECIPE.format(model=tiny_folder, folder=tiny_data), SETTINGS)
    folder = tmp_path_factory.mktemp("study") / "searched"
    return recipe, folder, compare(recipe, study=folder, device="cpu")


def test_each_family_has_its_trials_within_its_range(searched: Any) -> None:
    _, folder, summary = searched
    assert (folder / "study.journal").is_file()
    families = {one["name"]: one for one in summary["search"]["families"]}
    assert list(families) == ["full", "lora"]
    assert families["lora"]["space"] == {"rank": ["2", "4"], "learning_rate": [1e-3, 1]}
    first = {(run["arm"], run["learning_rate"]) for run in summary["runs"] if run["seed"] == 0}
    for family in families.values():
        rates = [trial["learning_rate"] for trial in family["tried"]]
        low, high = family["space"]["learning_rate"]
        assert len(rates) == 7 and all(low <= rate <= high for rate in rates)
        assert {(trial["arm"], trial["learning_rate"]) for trial in family["tried"]} <= first
        assert {*family["untried"], *(t["arm"] for t in family["tried"])} == {*family["arms"]}
    assert len(first) == 14


def test_the_best_is_the_best_learner_within_the_bound(searched: Any) -> None:
    """Against the points as the summary tells them, not through the search's own code."""
    _, folder, summary = searched
    for arm in summary["arms"]:
        points = [
            point
            for point in summary["points"]
            if point["arm"] == arm["name"] and point["seed"] == 0 and point["budget"] == 1200
        ]
        allowed = [p for p in points if p["changes"]["source_loss"]["value"] <= 0.05]
        # A lower loss is better learnt.
        best = min(allowed, key=lambda p: p["changes"]["target_loss"]["value"], default=None)
        assert best_rate(arm) == (best["learning_rate"] if best else None)
        further = {p["learning_rate"] for p in summary["points"]
                   if p["arm"] == arm["name"] and p["seed"] == 1}  # fmt: skip
        assert further == ({best["learning_rate"]} if best else set())
        tried = [run["learning_rate"] for run in summary["runs"]
                 if run["arm"] == arm["name"] and run["seed"] == 0]  # fmt: skip
        assert arm["rates"] == sorted(tried)
        ends = {min(tried): "low", max(tried): "high"} if best and len(tried) > 1 else {}
        assert arm["edge"] == (ends.get(best["learning_rate"], "") if best else "")
    caveats = " ".join(judgement(folder).caveats)
    assert "full was tried at 7 learning rates drawn between 0.001 and 0.003" in caveats
    assert "the chosen ones flatter" in caveats


def test_what_was_stopped_early_is_told_and_keeps_its_first_point(searched: Any) -> None:
    _, folder, summary = searched
    stopped = [run for run in summary["runs"] if run["state"] == "pruned"]
    assert stopped, "the median stops some of fourteen"
    for run in stopped:
        assert "among the worse ones" in run["reason"]
        budgets = [p["budget"] for p in summary["points"] if p["run"] == run["id"]]
        assert budgets == [600]
        place = StudyStore(folder).run(run["id"]).folder
        assert not (place / "resume").exists() and not (place / "legs.json").exists()
    page = write_report(folder).read_text()
    assert "stopped early by the search" in page


def test_a_second_call_repeats_nothing(searched: Any) -> None:
    recipe, folder, summary = searched
    before = stamps(folder)
    assert compare(recipe, study=folder, device="cpu") == summary
    assert before == stamps(folder)
    assert write_summary(StudyStore(folder), recipe) == summary


def test_a_run_stopped_early_can_be_finished_by_another_command(
    searched: Any, tmp_path: Path
) -> None:
    """Bit for bit the run that it would have been."""
    recipe, folder, summary = searched
    stopped = next(run for run in summary["runs"] if run["state"] == "pruned")
    shutil.copytree(folder, tmp_path / "copy")
    chosen = {"arm": stopped["arm"], "learning_rate": stopped["learning_rate"]}
    made = train(recipe, **chosen, study=tmp_path / "copy", device="cpu")
    fresh = train(recipe, **chosen, study=tmp_path / "fresh", device="cpu")
    assert [run["state"] for run in made["runs"]] == ["done"]
    found = [
        [p["scores"] for p in one["summary"]["points"] if p["run"] == stopped["id"]]
        for one in (made, fresh)
    ]
    assert len(found[0]) == 2 and found[0] == found[1]
    row = next(r for r in made["summary"]["runs"] if r["id"] == stopped["id"])
    assert (row["state"], row["reason"]) == ("done", "")


def test_budgets_that_are_runs_of_their_own_can_be_stopped_too(
    recipe_text: str, tmp_path: Path
) -> None:
    settings = [*SETTINGS[:2], "seeds=[0]"]
    summary = compare(parse_recipe(recipe_text, settings), study=tmp_path, device="cpu")
    tried = [t for family in summary["search"]["families"] for t in family["tried"]]
    stopped = [trial for trial in tried if trial["state"] == "pruned"]
    assert stopped and len(tried) == 14
    for trial in stopped:
        same = [r for r in summary["runs"] if r["learning_rate"] == trial["learning_rate"]]
        assert [(run["budget"], run["state"]) for run in same] == [(600, "done")]


def test_a_bound_holds_for_a_grid_too(recipe_text: str, tmp_path: Path) -> None:
    free = compare(parse_recipe(recipe_text, ["seeds=[0]"]), study=tmp_path, device="cpu")
    assert free["search"] is None
    recipe = parse_recipe(recipe_text, ["seeds=[0]", "search.max_forgetting=0"])
    bound = compare(recipe, study=tmp_path, device="cpu")
    for arm in bound["arms"]:
        last = [p for p in bound["points"] if p["arm"] == arm["name"] and p["budget"] == 1200]
        allowed = [p for p in last if p["changes"]["source_loss"]["value"] <= 0]
        best = min(allowed, key=lambda p: p["scores"]["validation_loss"]["value"], default=None)
        assert best_rate(arm) == (best["learning_rate"] if best else None)
        if best is None:
            words = f"{arm['name']} forgot more than 0 at each of 2 rates, so it is not compared."
            assert words in judgement(tmp_path).caveats


def test_two_workers_share_a_search(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "threads", lambda: 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings = ["search={sampler: random, trials: 3}", "seeds=[0]", "budget={tokens: [600]}"]
    summary = compare(parse_recipe(recipe_text, settings), study=tmp_path, workers=2, device="cpu")
    assert [len(family["tried"]) for family in summary["search"]["families"]] == [3, 3]
    assert all(run["state"] == "done" for run in summary["runs"]) and len(summary["runs"]) == 6
    timing = read_json(tmp_path / "timing.json")
    assert (timing["workers"], timing["runs"], timing["runs_before"]) == (2, 6, 0)


@pytest.mark.slow
def test_killed_at_random_moments_gives_the_same_summary(
    searched: Any, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    _, _, summary = searched
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_folder, folder=tiny_data))
    study = tmp_path / "study"
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    one = command("compare", tmp_path / "recipe.yaml", "--out", study, "--workers", 1,
                  "--device", "cpu", *sets)  # fmt: skip
    for seed, number in enumerate((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)):
        known = len([*study.glob("runs/*/run.json")])
        more = partial(lambda known: len([*study.glob("runs/*/run.json")]) > known, known)
        kill_at_random([one], more, seed, 4.0, number)
    finish(one)
    found = read_json(study / "summary.json")
    assert found["search"] == summary["search"]
    assert {r["id"]: r["state"] for r in found["runs"]} == {
        r["id"]: r["state"] for r in summary["runs"]
    }


def test_other_settings_are_another_search_and_external_arms_are_not_drawn(
    recipe_text: str, tmp_path: Path
) -> None:
    made = ["search={sampler: random, trials: 1}", "seeds=[0]", "budget.tokens=[300]"]
    lora = "arms={{lora: {{method: lora, rank: 4, alpha: {}, learning_rates: [1e-3, 1e-2]}}}}"
    study = tmp_path / "study"
    first = compare(parse_recipe(recipe_text, [*made, lora.format(8)]), study=study, device="cpu")
    run = StudyStore(study).run(first["runs"][0]["id"])
    place = run.checkpoint(first["points"][0]["step"])
    points = [
        f"{{model: {place}, budget: 300, learning_rate: {rate}}}" for rate in ("1e-3", "3e-3")
    ]
    external = f"arms.made={{method: lora, rank: 4, alpha: 8, external: [{', '.join(points)}]}}"
    recipe = parse_recipe(recipe_text, [*made, lora.format(3), external])
    with pytest.raises(UsageError, match="no checkpoint made elsewhere at rate"):
        train(recipe, arm="made", learning_rate=1e-3, seed=9, study=study, device="cpu")
    summary = compare(recipe, study=study, device="cpu")
    assert all(best_rate(arm) for arm in summary["arms"])
    rates = [one["learning_rate"] for one in summary["runs"] if one["arm"] == "made"]
    assert rates == [1e-3, 3e-3]
