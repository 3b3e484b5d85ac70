"""Model cards as huggingface_hub reads them, and adapters that PEFT finds the base of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.file_download import repo_folder_name

from laura.models.load import load_base
from laura.models.lora import lora_layers
from laura.models.model_card import model_card
from laura.models.registry import MICRO_BASE
from laura.recipe.sections import BaseSection, LoraArm
from laura.study.workbench import Workbench
from tests.models import peft_twin

IDS = torch.arange(3, 43)[None]


@pytest.mark.filterwarnings(peft_twin.WARNING)
def test_peft_follows_a_saved_adapter_to_its_base(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the recipe names the base by a path from somewhere else."""
    from peft import AutoPeftModelForCausalLM

    monkeypatch.chdir(tiny_folder.parent)
    bench = Workbench(BaseSection(model=f"./{tiny_folder.name}"), device="cpu")
    arm = LoraArm(method="lora", rank=4, learning_rates=[1e-3])
    with bench.adapted(arm, seed=0) as adapted:
        for layer in lora_layers(adapted.model).values():
            torch.nn.init.normal_(layer.B, std=0.1)
        adapted.write_weights(tmp_path / "adapter")
        with torch.no_grad():
            ours = adapted.model(IDS).logits
    monkeypatch.chdir(tmp_path)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(IDS).logits, ours, rtol=1e-5, atol=1e-5)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert card.data.tags == ["laura", "lora"]
    # The Hub refuses the path of a folder as a base.
    assert card.data.base_model is None and str(tiny_folder.resolve()) in card.text


def test_a_base_of_the_hub_is_named_by_its_id_and_commit(tmp_path: Path) -> None:
    """By the place that the Hub's own cache gives it."""
    cache, commit = tmp_path / repo_folder_name(repo_id="our-org/tiny", repo_type="model"), "a" * 40
    snapshot = cache / "snapshots" / commit
    shutil.copytree(MICRO_BASE, snapshot)
    assert load_base(str(snapshot), device="cpu").source() == ("our-org/tiny", commit)


def test_the_card_of_a_base_of_the_hub_names_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(model_card("our-org/tiny", "LoRA", "Something."))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "our-org/tiny" and "Something." in card.text
    assert "AutoPeftModelForCausalLM" in card.text
    whole = ModelCard(model_card("our-org/tiny", "Full", "Something.", adapter=False))
    assert whole.data.library_name == "transformers" and whole.data.tags == ["laura"]
