"""A study on a base in NF4, against the same study on a plain base of the dequantised weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models.load import load_base
from laura.models.nf4 import Nf4Linear
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.results.errors import StoreError
from laura.results.progress import Silent
from laura.results.schema import Record, write_record
from laura.results.store import StudyStore, read_json
from laura.study.workbench import Workbench, merge_adapter
from tests.conftest import make_tiny_tokenizer
from tests.study.carried_out import compare, judgement
from tests.study.conftest import RECIPE, one_thread
from tests.test_record import VALUE


def recipe_on(model: Path, data: Path, *overrides: str) -> Recipe:
    """Two LoRA arms at one rate and one seed."""
    text = RECIPE.format(model=model, folder=data)
    full = "  full: {method: full, learning_rates: [1e-3, 3e-3]}\n"
    dora = "  dora: {method: lora, dora: true, rank: 4, dropout: 0.1, learning_rates: [1e-2]}\n"
    text = text.replace(full, dora).replace("[1e-2, 3e-2]", "[1e-2]").replace("[0, 1]", "[0]")
    return parse_recipe(text, overrides)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """Folder and summary of both, the quantised one first."""
    folder = tmp_path_factory.mktemp("quantised")
    held = load_base(str(tiny_folder), quantization="nf4", device="cpu").model
    plain = load_base(str(tiny_folder), device="cpu").model
    with torch.no_grad():
        for name, module in held.named_modules():
            if isinstance(module, Nf4Linear):
                plain.get_submodule(name).weight.copy_(module.weight)
    plain.save_pretrained(folder / "base")
    make_tiny_tokenizer().save_pretrained(folder / "base")
    found = []
    with one_thread():
        for name, base, nf4 in (("nf4", tiny_folder, True), ("plain", folder / "base", False)):
            recipe = recipe_on(base, tiny_data, *(["base.quantization=nf4"] * nf4))
            found.append((folder / name, compare(recipe, study=folder / name)))
    return found


def test_scores_of_base_and_arms_are_those_of_the_dequantised_weights(studies: Any) -> None:
    (_, ours), (_, plain) = studies
    for task, score in plain["base"]["scores"].items():
        assert ours["base"]["scores"][task]["value"] == pytest.approx(score["value"], abs=1e-5)
    assert len(ours["points"]) == len(plain["points"]) == 4
    for one, other in zip(ours["points"], plain["points"], strict=True):
        for task, score in other["scores"].items():
            assert one["scores"][task]["value"] == pytest.approx(score["value"], abs=2e-3), task


def test_it_learns(studies: Any) -> None:
    (_, ours), _ = studies
    last = [point for point in ours["points"] if point["budget"] == 1200]
    assert len(last) == 2
    assert all(point["changes"]["target_loss"]["value"] < -0.5 for point in last)


def test_summary_runs_and_words_say_how_the_base_was_held(studies: Any) -> None:
    (folder, ours), (_, plain) = studies
    assert (ours["base"]["quantization"], plain["base"]["quantization"]) == ("nf4", None)
    assert ours["base"]["parameters"] == plain["base"]["parameters"]
    record = read_json(StudyStore(folder).run(ours["points"][0]["run"]).folder / "run.json")
    assert record["identity"]["quantization"] == "nf4"
    assert any("base in nf4" in caveat for caveat in judgement(folder).caveats)


def test_runs_of_a_base_that_is_held_otherwise_are_never_taken_over(
    studies: Any, tiny_folder: Path, tiny_data: Path
) -> None:
    (folder, _), (other, _) = studies
    with pytest.raises(StoreError, match="another quantization"):
        compare(recipe_on(tiny_folder, tiny_data), study=folder)
    with pytest.raises(StoreError, match="another quantization"):
        held = recipe_on(other.parent / "base", tiny_data, "base.quantization=nf4")
        compare(held, study=other)


def test_the_workbench_counts_and_lends_it_untouched(tiny_folder: Path, tiny_data: Path) -> None:
    recipe = recipe_on(tiny_folder, tiny_data, "base.quantization=nf4")
    bench = Workbench(recipe.base, "cpu")
    before = {n: m.packed for n, m in bench.base.model.named_modules() if hasattr(m, "packed")}
    with bench.adapted(recipe.arms["lora"], seed=0) as adapted:
        assert adapted.trainable_parameters == bench_count(tiny_folder, recipe)
    after = {n: m.packed for n, m in bench.base.model.named_modules() if hasattr(m, "packed")}
    assert len(before) == 14 and all(after[name] is packed for name, packed in before.items())


def bench_count(folder: Path, recipe: Recipe) -> int:
    """What the same arm trains on the plain base."""
    base = recipe.base.model_copy(update={"quantization": None})
    return Workbench(base, "cpu").count_trainable(recipe.arms["lora"])


def test_merging_says_that_the_scores_were_measured_on_another_base(
    studies: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    (folder, ours), _ = studies
    point = next(point for point in ours["points"] if point["arm"] == "lora")
    checkpoint = StudyStore(folder).run(point["run"]).checkpoint(point["step"])
    adapter = shutil.copytree(checkpoint, tmp_path / "adapter")
    base = {**VALUE["base"], "quantization": "nf4"}
    write_record(adapter, Record.model_validate_json(json.dumps({**VALUE, "base": base})))
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    merge_adapter(str(tiny_folder), adapter, tmp_path / "merged", device="cpu", progress=Heard())
    assert any("measured on its base in nf4" in text for text in said)
