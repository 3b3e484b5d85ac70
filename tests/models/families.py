"""A tiny random model of every family, with a window that documents exceed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from laura.models import attention

WINDOW = 24
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
    "tie_word_embeddings": False,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
MIXTURE = {"num_experts_per_tok": 2, "head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": WINDOW,
        "layer_types": MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": WINDOW,
        "layer_types": MIXED, "hidden_activation": "gelu_pytorch_tanh",
    },
    "phi3": {
        "sliding_window": WINDOW, "original_max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        },
    },
    "mixtral": {**MIXTURE, "num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {
        **MIXTURE, "num_experts": 4, "moe_intermediate_size": 48, "norm_topk_prob": True,
    },
    "gpt_neox": {
        "num_key_value_heads": None,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        },
    },
    "olmo2": {},
    "mistral": {"sliding_window": WINDOW},
}  # fmt: skip
MIXTURES = ("mixtral", "qwen3_moe")


def settings_of(kind: str) -> dict[str, Any]:
    """What stands in the config.json of a tiny model of this kind."""
    given = {"model_type": kind, **SIZES, **KINDS[kind]}
    return {key: value for key, value in given.items() if value is not None or key in KINDS[kind]}


def make_family(kind: str, implementation: str = attention.NAME) -> Any:
    """A random model with lively norms, biases and output map, the same weights every time."""
    attention.register()
    config = AutoConfig.for_model(**settings_of(kind))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.normal_(std=0.3)
            elif "experts" in name or "mlp.gate.weight" in name:
                parameter.normal_(std=0.1)
        model.get_output_embeddings().weight.normal_(std=0.5)
    return model
