"""PEFT adapters that hold more than LoRA beside the layers' maps, against PEFT's own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from laura.models.adapter_files import CHANGES_BASE, read_adapter, read_whole, trained_whole
from laura.models.adapters import fold, load_adapter
from laura.models.load import load_base
from laura.results.errors import AdapterError
from tests.conftest import make_tiny_model, make_tiny_tokenizer
from tests.models import peft_twin

# What PEFT says of embeddings that are targets, and of tied ones.
SAID = (
    "Setting .save_embedding", "Model with .tie_word", "Model has .tie_word", "You have requested",
    ".init_lora_weights. is .eva.", "lora with eva initialization",
)  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings(warning)
    for warning in (peft_twin.WARNING, *(f"ignore:{words}:UserWarning" for words in SAID))
]
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "output map whole": {"modules_to_save": ["lm_head"]},
    "embeddings whole": {"modules_to_save": ["embed_tokens"]},
    "both whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms whole": {"modules_to_save": ["norm", "input_layernorm"]},
    "LoRA on the output map": {"target_modules": ["q_proj", "lm_head"]},
    "DoRA on the output map": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "biases of LoRA": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
}


def make_base(folder: Path, tied: bool) -> Path:
    """A tiny Qwen2, whose q, k and v have biases."""
    tiny = make_tiny_model().config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "vocab_size", "max_position_embeddings", "eos_token_id",
             "initializer_range")  # fmt: skip
    config = Qwen2Config(**{name: tiny[name] for name in names}, tie_word_embeddings=tied)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, **choices: Any) -> torch.Tensor:
    """Save an adapter whose every trained number has moved; its logits as PEFT reads it back."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(**{**settings, **choices}, task_type="CAUSAL_LM"),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        return read.eval()(IDS).logits


@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian", "orthogonal", "eva", "mica"])
def test_which_starts_of_peft_change_the_base(start: str, tmp_path: Path) -> None:
    """Those of the others are plain. corda and lora_ga need data, loftq scipy."""
    base = make_base(tmp_path / "base", tied=True)
    before = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    make_adapter(base, tmp_path / "adapter", init_lora_weights=start)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=start),
    )
    after = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    changed = not torch.equal(before, after)
    assert changed == start.startswith(CHANGES_BASE)
    if changed:
        with pytest.raises(AdapterError, match="changes the base, so it fits no base"):
            read_whole(tmp_path / "adapter")
    else:
        read_adapter(tmp_path / "adapter")


IDS = torch.arange(3, 43)[None] * 11 % 500


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_folded_adapter_is_what_it_is_in_peft(kind: str, tied: bool, tmp_path: Path) -> None:
    base, adapter = make_base(tmp_path / "base", tied), tmp_path / "adapter"
    expected = make_adapter(base, adapter, **ADAPTERS[kind])
    loaded = load_base(str(base), device="cpu")
    before = loaded.model(IDS).logits
    fold(loaded.model, adapter)
    # Saved and read back: what was tied may not be any more.
    loaded.model.save_pretrained(tmp_path / "merged")
    loaded.tokenizer.save_pretrained(tmp_path / "merged")
    folded = load_base(str(tmp_path / "merged"), device="cpu").model(IDS).logits
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=2e-5)
    loaded = load_base(str(base), device="cpu")
    if kind == "plain":
        assert trained_whole(adapter) == []
        load_adapter(loaded.model, adapter)
    else:
        with pytest.raises(AdapterError, match=r"`laura merge BASE ADAPTER OUT`"):
            load_adapter(loaded.model, adapter)
