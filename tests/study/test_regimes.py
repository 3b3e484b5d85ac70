"""Both regimes: the place in the stream after a stop, and budgets measured apart or hot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.results.store import StudyStore
from laura.study.opening import open_study
from laura.study.runs import specs_of
from laura.training import learner
from tests.study.carried_out import train
from tests.study.test_material import endless_text, pretraining
from tests.study.test_replay import Stopper


@pytest.mark.parametrize(
    ("regime", "schedule"),
    [("instruct", "cosine"), ("pretrain", "trapezoidal"), ("pretrain", "constant")],
)
def test_a_stopped_run_goes_on_at_the_very_token(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regime: str, schedule: str
) -> None:
    read: list[list[int]] = []
    original = learner.model_inputs

    def recorded(rows: Any, device: Any) -> Any:
        read.append([token for row in rows for token in row.token_ids])
        return original(rows, device)

    monkeypatch.setattr(learner, "model_inputs", recorded)
    monkeypatch.setattr("laura.data.sources.hub_rows", endless_text([]))
    text = pretraining(recipe_text) if regime == "pretrain" else recipe_text
    recipe = parse_recipe(text, ["seeds=[0]", f"train.schedule={schedule}"])

    def attempt(folder: Path, progress: Any) -> None:
        with open_study(recipe, folder, None, "cpu", progress) as session:
            for spec in specs_of(session.recipe, "lora", 1e-2, 0):
                session.carry_out([spec])

    attempt(tmp_path / "whole", Stopper())
    whole, read[:] = list(read), []
    assert len({tuple(tokens) for tokens in whole}) > 8
    # The advance that greets a leg stands before any step, so each attempt takes one to five.
    for left in (2, 6, 4):
        with pytest.raises(KeyboardInterrupt):
            attempt(tmp_path / "cut", Stopper("training", left))
    assert 0 < len(read) < len(whole)
    attempt(tmp_path / "cut", Stopper())
    assert read == whole, "a pass was read twice, left out or changed"


@pytest.mark.parametrize(("unit", "mode"), [("tokens", "separate"), ("epochs", "hot")])
def test_budgets_are_runs_of_their_own_or_hot_and_the_summary_names_which(
    recipe_text: str, tmp_path: Path, unit: str, mode: str
) -> None:
    budget = "{tokens: [600, 1200]}" if unit == "tokens" else "{epochs: [0.5, 1]}"
    text = recipe_text.replace("{tokens: [600, 1200]}", budget)
    recipe = parse_recipe(text, ["seeds=[0]", f"budget.points={mode}"])
    made = train(recipe, arm="lora", learning_rate=1e-2, study=tmp_path / "s")
    summary = made["summary"]
    points = [600, 1200] if unit == "tokens" else [0.5, 1]
    assert summary["budget"] == {"unit": unit, "points": points, "mode": mode}
    assert [run["budget"] for run in summary["runs"]] == (points if mode == "separate" else [None])
    store = StudyStore(tmp_path / "s")
    for point in summary["points"]:
        rows = {row["step"]: row for row in store.run(point["run"]).metrics()}
        share = rows[point["step"]]["learning_rate"] / point["learning_rate"]
        # Apart, every budget ends a schedule of its own; hot, only the last one does.
        cooled = mode == "separate" or point["budget"] == points[-1]
        assert share < 0.15 if cooled else share > 0.4
