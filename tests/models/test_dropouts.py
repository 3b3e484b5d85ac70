"""Dropout on attention and on the residual stream, against transformers and written-out layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from laura.models.adapters import attach
from laura.models.attention import Documents, Scoring
from laura.models.device import autocast
from laura.models.layers import dropping
from laura.models.lean import lean
from laura.models.lora import LoraSettings
from laura.models.losses import packed_loss_sum
from laura.results.errors import ModelError
from tests.conftest import make_tiny_model
from tests.models.peft_twin import fill

IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81, 77, 12, 300, 8]])


def _hidden(model: Any, **inputs: Any) -> torch.Tensor:
    torch.manual_seed(4)
    hidden: torch.Tensor = model.get_decoder()(IDS, use_cache=False, **inputs).last_hidden_state
    return hidden.detach()


def _written_out(model: Any, share: float) -> torch.Tensor:
    """The decoder layer by layer, with dropout where the formula has it."""
    torch.manual_seed(4)
    decoder = model.get_decoder()
    x = decoder.embed_tokens(IDS)
    positions = torch.arange(IDS.shape[1])[None]
    rotation = decoder.rotary_emb(x, positions)
    for layer in decoder.layers:
        y, _ = layer.self_attn(layer.input_layernorm(x), position_embeddings=rotation)
        x = x + functional.dropout(y, share)
        y = layer.mlp(layer.post_attention_layernorm(x))
        x = x + functional.dropout(y, share)
    return decoder.norm(x).detach()


def test_residual_dropout_is_the_written_out_formula_lean_or_not(tiny_model: Any) -> None:
    tiny_model.train()
    expected = _written_out(tiny_model, 0.3)
    plain = _hidden(tiny_model)
    with dropping(tiny_model, None, 0.3):
        torch.testing.assert_close(_hidden(tiny_model), expected)
        with lean(tiny_model):
            torch.testing.assert_close(_hidden(tiny_model), expected, atol=1e-5, rtol=1e-5)
            assert not torch.equal(_hidden(tiny_model), plain)
    assert torch.equal(_hidden(tiny_model), plain)


def test_attention_dropout_is_transformers_own(tiny_model: Any) -> None:
    """The seed gives scaled dot-product attention and the eager form the same draws."""
    eager = make_tiny_model(attention_dropout=0.25)
    eager.set_attn_implementation("eager")
    expected = _hidden(eager.train())
    plain = _hidden(tiny_model.train())
    with dropping(tiny_model, 0.25, 0.0):
        torch.testing.assert_close(_hidden(tiny_model), expected, atol=1e-5, rtol=1e-5)
        packed = _hidden(tiny_model, documents=Documents([12]))
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(_hidden(tiny_model), plain)


def test_attention_weights_of_packed_documents_drop_at_their_share() -> None:
    """Values of one, so an output is the sum of the weights that were kept."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 400, 16), torch.randn(1, 2, 400, 16)
    value = torch.ones(1, 2, 400, 16)
    kept = Documents([150, 250]).attend(query, key, value, Scoring(0.25), 0.4)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    # Of the first token only one weight is there: it is dropped, or scaled up.
    firsts = kept[0, :, [0, 150], 0].flatten().tolist()
    assert all(min(abs(v), abs(v - 1 / 0.6)) < 1e-5 for v in firsts)
    assert float(kept.std()) > 0.01


@pytest.mark.parametrize("variant", ["full", "lora", "dora", "pissa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_under_lean_are_those_without_it(variant: str, dtype: torch.dtype) -> None:
    gradients = []
    for thin in (False, True):
        model = make_tiny_model().train()
        if variant != "full":
            chosen = {variant: True} if variant != "lora" else {}
            attach(model, LoraSettings(rank=4, dropout=0.1, **chosen), seed=0)
            fill(model)
        with dropping(model, 0.1, 0.2):
            if thin:
                with lean(model):
                    _backward(model, dtype)
            else:
                _backward(model, dtype)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        gap = (gradients[1][name] - gradient).norm() / gradient.norm()
        assert gap < (1e-4 if dtype == torch.float32 else 0.05), name


def _backward(model: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    inputs = {"input_ids": IDS, "documents": Documents([5, 7])}
    with autocast(torch.device("cpu"), dtype):
        packed_loss_sum(model, inputs, IDS[0].roll(-1), dtype).backward()


def test_nothing_drops_outside_training_and_everything_is_put_back(tiny_model: Any) -> None:
    before = _hidden(tiny_model)
    with pytest.raises(RuntimeError, match="stop"), dropping(tiny_model, 0.5, 0.5):
        assert torch.equal(_hidden(tiny_model), before)
        tiny_model.train()
        raise RuntimeError("stop")
    assert torch.equal(_hidden(tiny_model), before)
    assert tiny_model.config.attention_dropout == 0.0
    for layer in tiny_model.model.layers:
        del layer.self_attn.attention_dropout
    with pytest.raises(ModelError, match="LlamaAttention has no attention_dropout"):
        with dropping(tiny_model, 0.1, 0.0):
            pass
