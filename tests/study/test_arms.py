"""Every kind of arm in one comparison on the micro base, and what must hold of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.models.registry import MICRO_BASE
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BaseSection, FullArm, LoraArm, TrainSection
from laura.results.errors import RecipeError
from laura.results.store import StudyStore
from laura.study.workbench import Workbench
from tests.study.carried_out import compare

RECIPE = """
name: arms
base: {{model: micro}}
data:
  train: {{source: micro-code, split: train, limit: 60}}
  validation: {{source: micro-code, split: validation, limit: 4}}
  test: {{source: micro-code, split: test}}
  source_text: micro-source
  replay: [{{source: base_samples, count: 8, tokens: 64}}]
budget: {{tokens: [1_500]}}
arms:
  full: {{method: full, learning_rates: [1e-3]}}
  decay: {{method: full, learning_rates: [1e-3], weight_decay: 0.1}}
  l2-sp: {{method: full, learning_rates: [1e-3], weight_decay: 0.1, weight_decay_toward: base}}
  full-dropout:
    {{method: full, learning_rates: [1e-3], attention_dropout: 0.1, residual_dropout: 0.1}}
  full-layers: {{method: full, learning_rates: [1e-3], layers: [2]}}
  lora: {{method: lora, rank: 4, learning_rates: [4e-3]}}
  lora-dropout:
    {{method: lora, rank: 4, learning_rates: [4e-3], attention_dropout: 0.1, residual_dropout: 0.1}}
  lora-layers: {{method: lora, rank: 4, learning_rates: [4e-3], layers: [0, 3]}}
  lora-plus: {{method: lora, rank: 4, learning_rates: [1e-3], lora_plus_ratio: 16}}
  rslora: {{method: lora, rank: 4, learning_rates: [4e-3], rslora: true}}
  pissa: {{method: lora, rank: 4, learning_rates: [1e-3], init: pissa}}
  dora: {{method: lora, rank: 4, learning_rates: [4e-3], dora: true, weight_decay: 0.01}}
  lora-held: {{method: lora, rank: 4, learning_rates: [4e-3], penalty: kl, penalty_strength: 10}}
  full-held:
    {{method: full, learning_rates: [1e-3], penalty: kl, penalty_strength: 10, token_weight: flow}}
  full-mean: {{method: full, learning_rates: [1e-3], average: ema, average_strength: 0.5}}
  milora: {{method: lora, rank: 4, learning_rates: [4e-3], init: milora}}
  oplora: {{method: lora, rank: 4, learning_rates: [4e-3], protect: 16}}
  lora-null: {{method: lora, rank: 4, learning_rates: [4e-3], init: lora_null}}
  corda: {{method: lora, rank: 4, learning_rates: [2e-3], init: corda}}
  oft: {{method: oft, block_size: 16, learning_rates: [4e-3]}}
train: {{batch_tokens: 256, row_tokens: 256, precision: {precision}, weight_decay_rule: composer}}
seeds: [0]
measure:
  learning: [target_loss]
  forgetting: [source_loss, kl]
  loss_documents: 6
  loss_tokens: 64
"""
WIDTH, HIDDEN, LAYERS = 128, 352, 4
MAPS = [(WIDTH, WIDTH)] * 4 + [(HIDDEN, WIDTH)] * 2 + [(WIDTH, HIDDEN)]
IDS = torch.tensor([[5, 9, 20, 33, 7, 45, 2, 81]])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The study, carried out."""
    folder = tmp_path_factory.mktemp("study") / "arms"
    return folder, compare(parse_recipe(RECIPE.format(precision="fp32")), study=folder)


def _checkpoint(finished: tuple[Path, dict[str, Any]], arm: str) -> Path:
    folder, summary = finished
    point = next(point for point in summary["points"] if point["arm"] == arm)
    return StudyStore(folder).run(point["run"]).checkpoint(point["step"])


@pytest.mark.slow
def test_every_arm_is_trained_and_measured(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    assert len(summary["points"]) == len(summary["arms"]) == 20
    assert {run["state"] for run in summary["runs"]} == {"done"}
    learnt = {p["arm"]: p["changes"]["target_loss"]["value"] for p in summary["points"]}
    assert all(change < 0 for change in learnt.values()), learnt
    assert len({round(change, 6) for change in learnt.values()}) == 20, "no two are the same"
    drift = {p["arm"]: p["changes"]["kl"]["value"] for p in summary["points"]}
    assert all(kl > 0 for kl in drift.values())
    for held in ("full", "lora"):
        assert drift[f"{held}-held"] < drift[held] / 2


@pytest.mark.slow
def test_trained_numbers_are_counted_right(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    found = {arm["name"]: arm["trainable_parameters"] for arm in summary["arms"]}
    low_rank = 4 * sum(o + i for o, i in MAPS)
    for name in ("lora", "pissa", "milora", "oplora", "lora-plus", "lora-null", "corda"):
        assert found[name] == LAYERS * low_rank
    assert found["lora-layers"] == 2 * low_rank
    assert found["dora"] == LAYERS * (low_rank + sum(o for o, _ in MAPS))
    assert found["oft"] == LAYERS * sum(i for _, i in MAPS) * 15 // 2
    assert found["full-layers"] == sum(o * i for o, i in MAPS) + 2 * WIDTH
    whole = sum(t.numel() for t in load_file(MICRO_BASE / "model.safetensors").values())
    assert found["full"] == found["l2-sp"] == whole


@pytest.mark.slow
def test_layers_that_are_not_listed_stay_as_they_were(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    base = load_file(MICRO_BASE / "model.safetensors")
    tuned = load_file(_checkpoint(finished, "full-layers") / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name].float(), tuned[name].float())}
    assert changed and all(".layers.2." in name for name in changed)
    names = load_file(_checkpoint(finished, "lora-layers") / "adapter_model.safetensors")
    assert {name.split(".layers.")[1].split(".")[0] for name in names} == {"0", "3"}


@pytest.mark.slow
def test_decay_toward_the_base_stays_nearer_to_it_and_toward_zero_shrinks(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    base = load_file(MICRO_BASE / "model.safetensors")
    found = {
        arm: load_file(_checkpoint(finished, arm) / "model.safetensors")
        for arm in ("full", "decay", "l2-sp")
    }
    away = {
        arm: sum(float((tuned[n].float() - base[n].float()).square().sum()) for n in base)
        for arm, tuned in found.items()
    }
    length = {a: sum(float(t[n].float().square().sum()) for n in base) for a, t in found.items()}
    assert away["l2-sp"] < away["full"] < away["decay"]
    assert length["decay"] < 0.8 * length["full"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_pissa_checkpoint_is_a_plain_adapter_on_the_base(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = _checkpoint(finished, "pissa")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    bench = Workbench(BaseSection(model="micro"), device="cpu")
    with torch.inference_mode():
        expected = bench.base.model(IDS).logits
        with bench.tuned(folder) as (model, reference):
            ours = model(IDS).logits
            with reference():
                assert torch.equal(model(IDS).logits, expected)
        plain = AutoModelForCausalLM.from_pretrained(MICRO_BASE, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, folder)(IDS).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert float((ours - expected).abs().max()) > 0.1


def test_an_arm_that_asks_for_a_layer_too_many_stops_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    recipe = parse_recipe(RECIPE.format(precision="fp32").replace("layers: [2]", "layers: [4]"))
    with pytest.raises(RecipeError, match=r"arms\.full-layers\.layers: names 4, but the base's 4"):
        compare(recipe, study=tmp_path / "arms")
    assert not (tmp_path / "arms" / "base").exists()
    assert not (tmp_path / "arms" / "runs").exists()


@pytest.mark.slow
def test_every_arm_trains_in_bf16_autocast(tmp_path: Path) -> None:
    summary = compare(parse_recipe(RECIPE.format(precision="bf16")), study=tmp_path / "arms")
    assert {run["state"] for run in summary["runs"]} == {"done"}
    learnt = {p["arm"]: p["changes"]["target_loss"]["value"] for p in summary["points"]}
    assert all(change < 0 for change in learnt.values()), learnt


def test_what_a_recipe_does_not_say_leaves_the_names_of_its_runs_alone() -> None:
    """An ID is the hash of exactly what it was before these keys existed."""
    assert LoraArm(method="lora", rank=8).identity({"learning_rates"}) == {
        "method": "lora",
        "rank": 8,
        "alpha": None,
        "rslora": False,
        "targets": "all",
        "dropout": 0.0,
        "weight_decay": 0.0,
    }
    full = FullArm(method="full", residual_dropout=0.1)
    assert full.identity({"learning_rates"}) == {
        "method": "full",
        "weight_decay": 0.0,
        "residual_dropout": 0.1,
    }
    assert "weight_decay_rule" not in TrainSection().identity()
    assert TrainSection(weight_decay_rule="composer").identity()["weight_decay_rule"] == "composer"
