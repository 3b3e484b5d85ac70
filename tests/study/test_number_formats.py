"""Number formats of one study: a base that LoRA holds in bfloat16, and what all is measured in."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BaseSection, LoraArm, Recipe
from laura.results.errors import StoreError
from laura.results.store import StudyStore, read_json
from laura.study import opening
from laura.study.opening import open_study
from laura.study.workbench import Workbench
from tests.study.carried_out import compare
from tests.study.conftest import RECIPE, one_thread
from tests.training.test_loop import table


def recipe_of(model: Path, data: Path, *arms: str, **base: str) -> Recipe:
    """These arms, at one rate and one seed, in mixed precision."""
    rest = RECIPE.format(model=model, folder=data).split("arms:\n")
    after = rest[1][rest[1].index("train:") :].replace("precision: fp32", "precision: bf16")
    text = f"{rest[0]}arms:\n{''.join(arms)}{after}".replace("[0, 1]", "[0]")
    return parse_recipe(text, [f"base.{key}={value}" for key, value in base.items()])


FULL = "  full: {method: full, learning_rates: [1e-3]}\n"
PLAIN = "  lora: {method: lora, rank: 4, learning_rates: [1e-2]}\n"
NARROW = "  narrow: {method: lora, rank: 4, learning_rates: [1e-2], base_dtype: bfloat16}\n"


def losses(folder: Path, summary: dict[str, Any], arm: str) -> list[float]:
    run = next(point["run"] for point in summary["points"] if point["arm"] == arm)
    return [row["loss"] for row in table(StudyStore(folder).run(run).folder)]


def test_an_arm_is_trained_as_on_a_base_in_bfloat16_and_measured_as_all_others(
    tmp_path: Path, tiny_folder: Path, tiny_data: Path
) -> None:
    with one_thread():
        ours = compare(
            recipe_of(tiny_folder, tiny_data, FULL, PLAIN, NARROW), study=tmp_path / "ours"
        )
        other = compare(
            recipe_of(tiny_folder, tiny_data, PLAIN, dtype="bfloat16"), study=tmp_path / "other"
        )
        plain = compare(recipe_of(tiny_folder, tiny_data, FULL), study=tmp_path / "plain")
    held = losses(tmp_path / "other", other, "lora")
    assert losses(tmp_path / "ours", ours, "narrow") == held
    assert losses(tmp_path / "ours", ours, "lora") != held
    # Those of full weights come before and after it: neither base nor arm knows of the other.
    assert losses(tmp_path / "ours", ours, "full") == losses(tmp_path / "plain", plain, "full")
    assert ours["base"]["scores"] == plain["base"]["scores"] != other["base"]["scores"]
    change = next(p for p in ours["points"] if p["arm"] == "narrow")["changes"]["target_loss"]
    assert change["value"] < -0.1


def test_the_workbench_holds_one_base_at_a_time(tiny_folder: Path) -> None:
    bench = Workbench(BaseSection(model=str(tiny_folder)), "cpu")
    before = {name: tensor.clone() for name, tensor in bench.base.model.state_dict().items()}
    first = weakref.ref(bench.base.model)
    arm = LoraArm(method="lora", rank=4, base_dtype="bfloat16")
    with bench.adapted(arm, seed=0) as adapted:
        assert first() is None
        kinds = {p.requires_grad: p.dtype for p in adapted.model.parameters()}
        assert kinds == {False: torch.bfloat16, True: torch.float32}
        held = weakref.ref(adapted.model)
    del adapted
    after = bench.base.model.state_dict()
    assert held() is None and after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_study_is_measured_in_one_arithmetic(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder, _ = finished
    assert recipe.measure.precision is None
    folder = shutil.copytree(folder, tmp_path / "study")
    assert read_json(folder / "study.json")["identity"]["measure"]["precision"] == "fp32"
    named = {"precision": "fp32"}
    same = recipe.model_copy(update={"measure": recipe.measure.model_copy(update=named)})
    with open_study(same, folder, None, "cpu"):
        pass
    # On a machine with a GPU the same recipe would be measured in bf16.
    monkeypatch.setattr(opening, "resolve_precision", lambda *_: torch.bfloat16)
    with (
        pytest.raises(StoreError, match=r"another measure\.precision"),
        open_study(recipe, folder, None, "cpu"),
    ):
        pass
