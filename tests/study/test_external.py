"""Checkpoints made elsewhere are measured like a run's, and must be what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from laura.recipe.reading import parse_recipe, recipe_yaml
from laura.results.errors import AdapterError, CheckpointError, ModelError, RecipeError
from laura.results.store import StudyStore
from tests.study.carried_out import best_rate, compare, judgement
from tests.study.conftest import RECIPE

SHORT = ("arms.full.learning_rates=[1e-3]", "arms.lora.learning_rates=[1e-2]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """A study trained by Laura, whose checkpoints then stand for somebody else's."""
    recipe = parse_recipe(RECIPE.format(model=tiny_folder, folder=tiny_data), SHORT)
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    return recipe, folder, compare(recipe, study=folder)


def external_recipe(recipe: Any, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The same study, with every checkpoint named as made elsewhere."""
    data = yaml.safe_load(recipe_yaml(recipe))
    for name, arm in data["arms"].items():
        del arm["learning_rates"]
        arm["external"] = [
            {
                "model": str(StudyStore(folder).run(point["run"]).checkpoint(point["step"])),
                "budget": point["budget"],
                "learning_rate": point["learning_rate"],
                "seed": point["seed"],
            }
            for point in summary["points"]
            if point["arm"] == name
        ]
    return dict(data)


def test_they_score_as_where_they_were_trained(trained: Any, tmp_path: Path) -> None:
    recipe, folder, summary = trained
    text = yaml.safe_dump(external_recipe(recipe, folder, summary))
    made = parse_recipe(text)
    assert parse_recipe(recipe_yaml(made)) == made
    found = compare(made, study=tmp_path / "study")

    def scores(of: dict[str, Any]) -> dict[Any, Any]:
        return {(p["arm"], p["seed"], p["budget"]): p["scores"] for p in of["points"]}

    assert scores(found) == scores(summary) and len(found["points"]) == 8
    assert [best_rate(arm) for arm in found["arms"]] == [1e-3, 1e-2]
    # With two seeds nothing is said of the method; what was made elsewhere is not called untuned.
    assert "2 seeds" in judgement(tmp_path / "study").answer
    weights = [p for p in (tmp_path / "study").rglob("*.safetensors") if "corpus" not in p.parts]
    assert not weights, "checkpoints made elsewhere are not copied"
    assert compare(made, study=tmp_path / "study") == found


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_of_peft_joins(trained: Any, tmp_path: Path, tiny_folder: Path) -> None:
    recipe, folder, summary = trained
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
    data = external_recipe(recipe, folder, summary)
    point = {"model": str(tmp_path / "theirs"), "budget": 1200, "learning_rate": 1e-4}
    data["arms"] = {
        "theirs": {"method": "lora", "rank": 2, "alpha": 8, "external": [point]},
    }
    found = compare(parse_recipe(yaml.safe_dump(data)), study=tmp_path / "study")
    (measured,) = found["points"]
    # PEFT's B starts at zero, so the adapter changes nothing.
    assert measured["scores"]["kl"]["value"] == pytest.approx(0, abs=1e-7)
    data["arms"]["theirs"]["rank"] = 4
    with pytest.raises(AdapterError, match="rank 2, not 4"):
        compare(parse_recipe(yaml.safe_dump(data)), study=tmp_path / "study")


def test_a_checkpoint_of_another_base_is_refused(
    trained: Any, tmp_path: Path, tiny_folder: Path
) -> None:
    recipe, folder, summary = trained
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 9}))
    data = external_recipe(recipe, folder, summary)
    data["arms"]["full"]["external"][0]["model"] = str(other)
    with pytest.raises(ModelError, match="vocab_size 9"):
        compare(parse_recipe(yaml.safe_dump(data)), study=tmp_path / "study")
    data["arms"]["full"]["external"][0]["model"] = str(tmp_path / "gone")
    with pytest.raises(ModelError, match="does not exist"):
        compare(parse_recipe(yaml.safe_dump(data)), study=tmp_path / "study")
    assert not list((tmp_path / "study").rglob("checkpoints"))


def test_weights_that_changed_since_are_not_measured(trained: Any, tmp_path: Path) -> None:
    recipe, folder, summary = trained
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    made = parse_recipe(yaml.safe_dump(external_recipe(recipe, copy, summary)))
    study = tmp_path / "study"
    compare(made, study=study)
    point = summary["points"][0]
    weights = StudyStore(copy).run(point["run"]).checkpoint(point["step"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    for path in study.glob("runs/*/evals/*/kl.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="changed since"):
        compare(made, study=study)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"budget": 77}, "arms.full.external.0.budget"),
        ({"seed": 9}, "arms.full.external.0.seed"),
        ({"learning_rate": 2}, "arms.full.external.0.learning_rate"),
        ({"modle": "x"}, "arms.full.external.0.modle"),
    ],
)
def test_faults(trained: Any, change: dict[str, Any], path: str) -> None:
    data = external_recipe(*trained)
    data["arms"]["full"]["external"][0] |= change
    with pytest.raises(RecipeError) as caught:
        parse_recipe(yaml.safe_dump(data))
    assert path in {fault.path for fault in caught.value.faults}
