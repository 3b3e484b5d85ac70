"""The decoder: a pass through a model's layers.

Llama, Mistral and Qwen2 have the same block. `PlainDecoder` computes it with few calls: a
step of some rows otherwise spends as long on the way through modules as on arithmetic. Any
other model goes through transformers' own modules (`ModuleDecoder`).

The residual stream and the norms are float32, also where the maps are bfloat16.

Shapes: T tokens of the pass, W hidden width, H heads, G key/value heads, S = 2 G, D head
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laura.engine.batch_attention import BatchAttention
from laura.engine.fused_linear import FUSED, FusedLinear

# Whose modules compute what `PlainDecoder` does, and nothing else.
PLAIN_KINDS = ("Llama", "Mistral", "Qwen2")


Decoder = Callable[[Sequence[int], Sequence[int], BatchAttention], Tensor]
"""Token ids and their positions to hidden states (T, W) behind the last norm."""


class ModuleDecoder:
    """Through transformers' modules, whatever they are.

    Args:
        model: A causal language model with attention "laura", its maps fused or not.
    """

    def __init__(self, model: Any) -> None:
        self.decoder = model.get_decoder()
        self.device = model.get_input_embeddings().weight.device

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], attention: BatchAttention
    ) -> Tensor:
        """See `Decoder`."""
        output = self.decoder(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            decode=attention,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


@dataclass
class _Norm:
    """A root-mean-square norm, weight * x / sqrt(mean(x^2) + epsilon)."""

    weight_W: Tensor
    epsilon: Tensor

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        weight = norm.weight.detach().float()
        return cls(weight, weight.new_full((1,), norm.variance_epsilon))

    def __call__(self, x_TW: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x_TW, dim=-1, keepdim=True)
        inverse = self.epsilon.addcmul(length, length, value=1 / x_TW.shape[-1]).rsqrt_()
        return (x_TW * inverse).mul_(self.weight_W)


@dataclass
class _FusedLayer:
    before_attention: _Norm
    qkv: FusedLinear
    output: FusedLinear
    before_unit: _Norm
    gate_up: FusedLinear
    down: FusedLinear


class PlainDecoder:
    """The layers of a Llama, Mistral or Qwen2.

    Args:
        model: The causal language model.
        fused: Its maps, as `fuse_linears` gives them.
    """

    def __init__(self, model: Any, fused: Sequence[FusedLinear]) -> None:
        decoder = model.get_decoder()
        self.embedding, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        attention = decoder.layers[0].self_attn
        self.width, self.scaling = attention.head_dim, attention.scaling
        self.heads = fused[1].group.inputs // self.width
        self.turned = self.heads + fused[0].group.outputs[1] // self.width
        self.dtype, self.norm = fused[0].dtype, _Norm.of(decoder.norm)
        count = len(FUSED)
        self.layers = []
        for number, layer in enumerate(decoder.layers):
            qkv, output, gate_up, down = fused[number * count : (number + 1) * count]
            before, between = _Norm.of(layer.input_layernorm), layer.post_attention_layernorm
            self.layers.append(_FusedLayer(before, qkv, output, _Norm.of(between), gate_up, down))

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], attention: BatchAttention
    ) -> Tensor:
        """See `Decoder`."""
        device = self.embedding.weight.device
        x_TW = functional.embedding(torch.tensor(ids, device=device), self.embedding.weight).float()
        cos, sin = self._turns(torch.tensor([positions], device=device), x_TW)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.before_attention(x_TW).to(self.dtype))
            heads = self._turn(qkv.unflatten(1, (-1, self.width)), cos, sin)
            query, both = heads[:, : self.heads], heads[:, self.heads :]
            x_TW += layer.output(attention.attended(number, query, both, self.scaling))
            gate_up = layer.gate_up(layer.before_unit(x_TW).to(self.dtype))
            gate, up = gate_up.chunk(2, dim=1)
            x_TW += layer.down(functional.silu(gate).mul_(up))
        return self.norm(x_TW)

    def _turns(self, positions: Tensor, x_TW: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (T, 1, D) of the rotary angles; the sine with the sign it is used by."""
        cos, sin = self.rotary(x_TW[None], positions)
        first = torch.arange(self.width, device=sin.device) < self.width // 2
        return cos[0, :, None], torch.where(first, -sin, sin)[0, :, None]

    def _turn(self, heads_TXD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate queries and keys by their positions; values, behind them, stay."""
        wide = heads_TXD.float()
        part = wide[:, : self.turned]
        crossed = part.unflatten(2, (2, -1)).flip(2).flatten(2)
        part.mul_(cos).addcmul_(crossed, sin)
        return wide.to(heads_TXD.dtype)


def decoder_for(model: Any, fused: Sequence[FusedLinear]) -> Decoder:
    """The fastest decoder that computes what the model does.

    Args:
        model: A causal language model with attention "laura".
        fused: Its maps, as `fuse_linears` gives them; where they were, nothing else may have
            been changed.
    """
    return PlainDecoder(model, fused) if _is_plain(model) else ModuleDecoder(model)


def _is_plain(model: Any) -> bool:
    """Whether every module is, by its very class, one that `PlainDecoder` stands for."""
    decoder = model.get_decoder()
    kind = type(decoder).__name__.removesuffix("Model")
    if kind not in PLAIN_KINDS or getattr(model.config, "hidden_act", None) != "silu":
        return False
    name = kind.lower()
    place = f"transformers.models.{name}.modeling_{name}"
    expected = {"Model": [decoder], "RotaryEmbedding": [decoder.rotary_emb]}
    expected["RMSNorm"] = [decoder.norm]
    for layer in decoder.layers:
        expected.setdefault("DecoderLayer", []).append(layer)
        expected.setdefault("Attention", []).append(layer.self_attn)
        expected.setdefault("MLP", []).append(layer.mlp)
        expected["RMSNorm"] += [layer.input_layernorm, layer.post_attention_layernorm]
    return all(
        (type(module).__module__, type(module).__name__) == (place, kind + role)
        for role, modules in expected.items()
        for module in modules
    )
