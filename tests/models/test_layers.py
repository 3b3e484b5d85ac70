"""Adapters on some decoder layers only, against PEFT's layers_to_transform."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models.adapters import attach, load_adapter, save_adapter
from laura.models.lora import LoraSettings, detach, lora_layers
from laura.results.errors import ModelError
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])


@pytest.mark.parametrize("layers", [(2,), (0, 3)])
def test_the_layers_are_pefts_and_so_are_the_files(layers: tuple[int, ...], tmp_path: Path) -> None:
    from peft import PeftModel

    ours = make_tiny_model(num_hidden_layers=4)
    settings = LoraSettings(rank=4, alpha=8, targets=("q_proj", "up_proj"), layers=layers)
    names = attach(ours, settings, seed=0)
    oracle.fill(ours)
    twin = oracle.make_twin(
        make_tiny_model(num_hidden_layers=4),
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], layers_to_transform=list(layers),
    )  # fmt: skip
    oracle.copy_to_twin(ours, twin)  # checks that both train the same parameters
    assert len(names) == 2 * len(layers)
    with torch.inference_mode():
        mine = ours(IDS).logits
        torch.testing.assert_close(mine, twin(IDS).logits, atol=1e-5, rtol=0)
    save_adapter(ours, tmp_path, settings, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == list(layers)
    assert config["target_modules"] == ["q_proj", "up_proj"]
    plain = make_tiny_model(num_hidden_layers=4)
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(plain, tmp_path)(IDS).logits
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=0)
    detach(ours)
    load_adapter(ours, tmp_path)
    with torch.inference_mode():
        assert torch.equal(ours(IDS).logits, mine)


def test_layers_that_are_not_there_are_named(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="names 2, 7, but this model's 2 decoder layers"):
        attach(tiny_model, LoraSettings(layers=(1, 2, 7)), seed=0)
    with pytest.raises(ModelError, match=r"none of the 1 targets lies in layers \[1\]"):
        attach(tiny_model, LoraSettings(targets=("layers.0.mlp.up_proj",), layers=(1,)), seed=0)
    assert not lora_layers(tiny_model)
