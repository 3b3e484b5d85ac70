"""The plain decoder against transformers' own modules, for every model it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from laura.engine.model_runner import ModuleDecoder, PlainDecoder, decoder_for, fuse_linears
from laura.engine.scheduler import TokenSequence
from laura.models import attention
from tests.engine.alone import Heard, hear, serving
from tests.engine.test_many_adapters import lively

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
LONG = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128}  # fmt: skip
PLAIN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, wide heads, biases": (
        LlamaForCausalLM,
        LlamaConfig,
        {"head_dim": 32, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LONG}),
    "llama, keys of their own": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
}
OTHERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"residual_multiplier": 0.3}),
    "llama of gelu": (LlamaForCausalLM, LlamaConfig, {"hidden_act": "gelu"}),
}


def made(kind: tuple[Any, Any, dict[str, Any]]) -> Any:
    """A random model with lively biases and norms."""
    attention.register()
    model_type, config_type, changes = kind
    torch.manual_seed(0)
    config = config_type(**{**SIZES, **changes})
    model = lively(model_type._from_config(config, attn_implementation="laura").eval())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_scores_are_those_of_transformers(name: str, tiny_tokenizer: Any) -> None:
    kind = PLAIN.get(name) or OTHERS[name]
    prompts = [tiny_tokenizer.encode(text) for text in ("the dog ran", "a", "question: " * 30)]
    with serving(made(kind), tiny_tokenizer, cache_bytes=2**25, part_tokens=40) as engine:
        assert isinstance(engine.runner.decoder, PlainDecoder if name in PLAIN else ModuleDecoder)
        asked = [TokenSequence("t", tuple(ids), 9, top=0, ignore_end=True) for ids in prompts]
        heard: dict[TokenSequence, Heard] = {}
        for one in asked:
            engine.add(one)
            hear(engine, heard, steps=2)
        hear(engine, heard)
    model = made(kind)
    for one in asked:
        whole = [*one.prompt, *one.tokens]
        with torch.no_grad():
            nats = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        for place, (token, value, _) in enumerate(heard[one].scores, len(one.prompt) - 1):
            assert token == int(nats[place].argmax())
            assert value == pytest.approx(nats[place, token].item(), abs=1e-4)


def test_a_changed_module_goes_through_transformers() -> None:
    class Louder(LlamaMLP):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    model = made(PLAIN["llama"])
    model.model.layers[1].mlp = Louder(model.config)
    joined, _ = fuse_linears(model, torch.float32)
    assert isinstance(decoder_for(model, joined), ModuleDecoder)
