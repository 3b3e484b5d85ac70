"""Arms made of another arm's checkpoints: what stands in their folders, and what is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.models.registry import MICRO_BASE
from laura.recipe.reading import parse_recipe
from laura.results.errors import UsageError
from laura.results.store import StudyStore
from laura.study.compare import train
from laura.study.runs import check_configurations
from tests.study.carried_out import compare

RECIPE = """
name: after
base: {model: micro}
data:
  train: {source: micro-code, split: train, limit: 40}
  validation: {source: micro-code, split: validation, limit: 4}
  test: {source: micro-code, split: test}
  source_text: micro-source
budget: {tokens: [1_000]}
arms:
  full: {method: full, learning_rates: [1e-3], after: {scale: [0.5]}}
  lora:
    {method: lora, rank: 4, learning_rates: [2e-3, 8e-3], after: {scale: [0.5], intruders: [0.5]}}
train: {batch_tokens: 256, row_tokens: 256, precision: fp32}
search: {extend: 1}
seeds: [0]
measure:
  {learning: [target_loss], forgetting: [source_loss, kl], loss_documents: 4, loss_tokens: 64}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("study") / "after"
    return folder, compare(parse_recipe(RECIPE), study=folder)


def weights(study: tuple[Path, Any], arm: str) -> dict[str, torch.Tensor]:
    """The checkpoint of an arm's first rate."""
    folder, summary = study
    point = next(point for point in summary["points"] if point["arm"] == arm)
    place = StudyStore(folder).run(point["run"]).checkpoint(point["step"])
    (file,) = place.glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
def test_they_are_points_like_all_others_at_the_rates_of_their_arm(study: tuple[Path, Any]) -> None:
    _, summary = study
    names = ["full", "full-scale-0.5", "lora", "lora-scale-0.5", "lora-intruders-0.5"]
    assert [arm["name"] for arm in summary["arms"]] == names
    rates = {arm["name"]: arm["rates"] for arm in summary["arms"]}
    assert rates["lora"] == rates["lora-scale-0.5"] == rates["lora-intruders-0.5"]
    assert len(rates["lora"]) == 3, "the list has grown, for all of them"
    assert {run["state"] for run in summary["runs"]} == {"done"}
    assert len(summary["points"]) == len(summary["runs"]) == 2 + 3 * 3
    kl = {(p["arm"], p["learning_rate"]): p["scores"]["kl"]["value"] for p in summary["points"]}
    for arm in ("full", "lora"):
        for rate in rates[arm]:
            assert 0 < kl[f"{arm}-scale-0.5", rate] < kl[arm, rate]
    settings = {arm["name"]: arm["settings"] for arm in summary["arms"]}
    assert "of" not in settings["lora"]
    assert (
        settings["lora-scale-0.5"].items()
        >= {"of": "lora", "change": "scale", "factor": 0.5}.items()
    )


@pytest.mark.slow
def test_their_checkpoints_are_those_of_their_arm_changed(study: tuple[Path, Any]) -> None:
    base = load_file(MICRO_BASE / "model.safetensors")
    tuned, half = weights(study, "full"), weights(study, "full-scale-0.5")
    assert tuned.keys() == half.keys()
    for name, tensor in half.items():
        wanted = 0.5 * (base[name].float() + tuned[name])
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
    tuned, half = weights(study, "lora"), weights(study, "lora-scale-0.5")
    for name, tensor in half.items():
        assert torch.equal(tensor, tuned[name] * (0.5 if "lora_B" in name else 1)), name


@pytest.mark.slow
def test_what_stands_is_not_made_again(study: tuple[Path, Any]) -> None:
    folder, summary = study
    files = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()}
    point = next(p for p in summary["points"] if p["arm"] == "lora-scale-0.5")
    run = StudyStore(folder).run(point["run"])
    run.evaluation(point["step"], "kl").unlink()
    again = compare(parse_recipe(RECIPE), study=folder)
    assert json.dumps(again["points"]) == json.dumps(summary["points"])
    changed = {p for p in files if p.stat().st_mtime_ns != files[p]} - {run.folder / "done.json"}
    assert {p for p in changed if p.suffix != ".lock" and "evals" not in p.parts} <= {
        p for p in files if p.name in ("lock", "done.json")
    }
    weights_files = [p for p in files if p.suffix == ".safetensors"]
    assert weights_files and not changed & set(weights_files)


def test_they_are_neither_trained_nor_confirmed_by_themselves(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE)
    with pytest.raises(UsageError, match=r"made of lora's checkpoints; train lora"):
        train(recipe, arm="lora-scale-0.5", study=tmp_path / "x")
    with pytest.raises(UsageError, match=r"made of lora's checkpoints; confirm lora"):
        check_configurations([("lora-scale-0.5", 2e-3)], 1, recipe)
