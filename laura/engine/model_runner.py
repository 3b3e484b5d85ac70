"""How a model computes what the scheduler wants: as it is, for evaluation, or taken over to serve.

A pass goes through the layers, the decoder. Llama, Mistral and Qwen2 have the same block:
`PlainDecoder` computes it with few calls, since a step of some rows otherwise spends as long on the
way through modules as on arithmetic. Any other model goes through transformers' own modules
(`ModuleDecoder`). The residual stream and the norms are float32, also where the maps are bfloat16.

Of a model that is taken over to serve, maps that read the same input (q, k, v; gate, up) become
one product. A LoRA batch, set for one pass, says which tokens go through which adapter
(adapter_slots.py):

    y = W x + B_s (A_s x)   for the tokens of slot s (the factor alpha / r is in B)

The weight lies as the processor's product wants it: oneDNN packs it once and then needs no
further copy of it in any pass. Two rows or more: each row's result is the same to the last bit
whatever its neighbours are, which an answer in a batch owes to the same answer alone; so a
single row is computed as two. The same holds for a weight that is not packed, with the same
bits. Where oneDNN packs nothing of the weight's format (`device.packs_weights`) the product is
torch's own, without that promise.

oneDNN makes a kernel for every number of rows, in milliseconds, and keeps a thousand of
them. Rows are filled up, so that passes of all lengths need few (`filled_rows`).

Shapes: T tokens of a pass, N predictions or rows, W hidden width, V vocabulary, I in, O out of all
maps of a group, H heads, G key/value heads, S = 2 G, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from laura.engine.adapter_slots import CurrentBatch, LinearGroup, Slot, Slots, slot_order
from laura.engine.kv_cache import BatchAttention, Geometry, geometry_of
from laura.engine.prefix_tree import route_order
from laura.models.attention import Scoring
from laura.models.device import autocast, linear, packs_weights
from laura.models.families import LLAMA, family_of
from laura.models.layers import decoder_layers
from laura.models.lora import route
from laura.models.losses import capped, output_head, softcap_of

# Each number of rows up to this has kernels of its own: filling up would cost more.
FEW_ROWS = 8
# Whose modules compute what `PlainDecoder` does, and nothing else.
PLAIN_KINDS = ("Llama", "Mistral", "Qwen2")

_OPS: Any = torch.ops.mkldnn

Decoder = Callable[[Sequence[int], Sequence[int], BatchAttention], Tensor]
"""Token ids and their positions to hidden states (T, W) behind the last norm."""
Segments = Sequence[tuple[Any, int]]
"""(slot or None for the base, tokens) pieces of a pass, in order."""


class PackedLinear:
    """W x + b for weights that are never trained; the given weight need not be kept.

    Args:
        weight_OI: float32 or bfloat16.
        bias_O: Of the same type, if there is one.
        shared: Whether others keep the weight too, as a tied embedding does: it is not packed
            then, so that it is held once. From some ten rows on that is slower (SmolLM2-135M's
            output map, 32 rows, two cores: 14 ms against 10 in float32, 9 against 5 in bfloat16).
    """

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None = None, shared: bool = False
    ) -> None:
        self.dtype, self.bias = weight_OI.dtype, bias_O
        self.bytes = weight_OI.numel() * weight_OI.element_size()
        self._plain = not packs_weights(weight_OI.device, self.dtype)
        stays = shared or self._plain
        self._weight = weight_OI if stays else _OPS._reorder_linear_weight(weight_OI)

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The map's output (N, O) for x in the weight's type."""
        if self._plain:
            return linear(x_NI, self._weight, self.bias)
        more = filled_rows(len(x_NI)) - len(x_NI)
        rows = functional.pad(x_NI, (0, 0, 0, more)) if more else x_NI
        found: Tensor = _OPS._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return found[: len(x_NI)]


def filled_rows(rows: int) -> int:
    """How many rows are computed where so many are wanted: at most a quarter more beyond 32."""
    if rows <= FEW_ROWS:
        return max(2, rows)
    piece = 8 if rows <= 64 else 16 if rows <= 128 else 32
    return -(-rows // piece) * piece


class FusedLinear:
    """Linear maps of one input as a single product, and their adapters'.

    Args:
        group: Their names and widths.
        maps: The maps; they are not needed afterwards.
        current: Where the batch of a pass stands.
        dtype: Number format of the product.
    """

    def __init__(
        self,
        group: LinearGroup,
        maps: Sequence[nn.Linear],
        current: CurrentBatch,
        dtype: torch.dtype,
    ) -> None:
        self.group, self.current, self.dtype = group, current, dtype
        weight = torch.cat([one.weight.detach().to(dtype) for one in maps])
        bias = None
        if any(one.bias is not None for one in maps):
            zeros = [one.weight.new_zeros(len(one.weight)) for one in maps]
            pairs = zip(zeros, maps, strict=True)
            bias = torch.cat([z if m.bias is None else m.bias.detach() for z, m in pairs]).to(dtype)
        self.product = PackedLinear(weight, bias)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Outputs of all maps side by side, (T, O), for x in their number format."""
        batch, product = self.current.batch, self.product
        y_TO = batch.mapped(self.group, x_TI, product) if batch.rotated else product(x_TI)
        batch.add(self.group, x_TI, y_TO)
        return y_TO


class FusedPart(nn.Module):
    """Stands where the model has one of the joined maps.

    The first of a group that is asked computes for all that read the same input.
    """

    def __init__(self, shared: SharedInput, name: str) -> None:
        super().__init__()
        self.shared, self.name = shared, name

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., out)."""
        return self.shared.part(self.name, x)


class SharedInput:
    """Joined maps that are asked one by one, with the same input."""

    def __init__(self, joined: FusedLinear) -> None:
        self.joined = joined
        self._read: Tensor | None = None
        self._parts: dict[str, Tensor] = {}

    def part(self, name: str, x: Tensor) -> Tensor:
        """One map's output for x, (..., out)."""
        if self._read is not x or name not in self._parts:
            self._read, self._parts = x, self._computed(x)
        found = self._parts.pop(name)
        if not self._parts:
            self._read = None
        return found

    def _computed(self, x: Tensor) -> dict[str, Tensor]:
        group = self.joined.group
        y_TO = self.joined(x.reshape(-1, x.shape[-1]).to(self.joined.dtype))
        parts = zip(group.names, y_TO.split(group.outputs, dim=1), strict=True)
        return {name: y.unflatten(0, x.shape[:-1]) for name, y in parts}


def fuse_linears(model: Any, dtype: torch.dtype) -> tuple[list[FusedLinear], CurrentBatch]:
    """Make a model's maps ready; it serves only from then on.

    Weights of the maps are held once, in `dtype`.

    Returns:
        The joined maps, layer by layer in the order of the family, and the current on which
        the batch of a pass is put. Experts stay as they are.
    """
    current, made = CurrentBatch(), []
    names = {module: name for name, module in model.named_modules()}
    for layer in decoder_layers(model):
        modules = dict(layer.named_modules())
        for members in family_of(model.config.model_type).joined:
            maps = [modules[member] for member in members]
            full = tuple(f"{names[layer]}.{member}" for member in members)
            outputs = tuple(len(one.weight) for one in maps)
            group = LinearGroup(full, maps[0].in_features, outputs)
            joined = FusedLinear(group, maps, current, dtype)
            shared = SharedInput(joined)
            for name in full:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, FusedPart(shared, name))
            made.append(joined)
    return made, current


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
    scores: Scoring
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
        self.width, window = attention.head_dim, getattr(model.config, "sliding_window", None)
        self.heads = fused[1].group.inputs // self.width
        self.turned = self.heads + fused[0].group.outputs[1] // self.width
        self.dtype, self.norm = fused[0].dtype, _Norm.of(decoder.norm)
        count = len(LLAMA.joined)
        self.layers = []
        for number, layer in enumerate(decoder.layers):
            qkv, output, gate_up, down = fused[number * count : (number + 1) * count]
            before, between = _Norm.of(layer.input_layernorm), layer.post_attention_layernorm
            own = getattr(layer.self_attn, "sliding_window", window)  # Qwen2's differ by layer
            scores = Scoring(attention.scaling, own)
            self.layers.append(
                _FusedLayer(before, qkv, scores, output, _Norm.of(between), gate_up, down)
            )

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
            x_TW += layer.output(attention.attended(number, query, both, layer.scores))
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


class ModelRunner(Protocol):
    """A model, as the scheduler sees it.

    Attributes:
        model: The causal language model.
        device: Where it lives.
        geometry: Size of its keys and values.
    """

    model: Any
    device: torch.device
    geometry: Geometry

    def hidden(
        self, ids: Sequence[int], positions: Sequence[int], segments: Segments, work: BatchAttention
    ) -> Tensor:
        """Hidden states (T, W) behind the last norm, of tokens at their positions."""

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """Logits (N, V), float32."""

    def order(self, slot: Any) -> Any:
        """Sorts slots so that a pass is cheap in which their tokens stand in this order."""

    def use(self, slot: Any) -> None:
        """One more sequence goes through a slot."""

    def leave(self, slot: Any) -> None:
        """One sequence less goes through a slot."""

    def rest(self) -> None:
        """No sequence is left."""


class ModuleRunner:
    """A model as it is, through transformers' modules; slots are those of its LoRA layers.

    Args:
        model: A causal language model with attention "laura".
        precision: float32, or bfloat16 for mixed precision.
        routed: Whether its LoRA layers hold adapters that requests name; else the model
            answers as it is, adapter attached or not.

    Raises:
        ModelError: the model's output map is not a plain one.
    """

    def __init__(self, model: Any, precision: torch.dtype, routed: bool) -> None:
        self.model, self.precision, self.routed = model, precision, routed
        self.head = output_head(model)
        self.device = self.head.weight.device
        exact = precision == torch.float32
        self.geometry = geometry_of(model.config, self.head.weight.dtype if exact else precision)
        self._decoder = ModuleDecoder(model)

    def hidden(
        self, ids: Sequence[int], positions: Sequence[int], segments: Segments, work: BatchAttention
    ) -> Tensor:
        """See `ModelRunner.hidden`."""
        with self.through(segments), autocast(self.device, self.precision):
            return self._decoder(ids, positions, work)

    def through(self, segments: Segments) -> AbstractContextManager[object]:
        """Passes through these slots, where requests name adapters; else the model as it is."""
        if not self.routed:
            return nullcontext()
        # Neighbours of one slot go through its matrices together.
        runs = groupby(segments, key=lambda segment: segment[0])
        merged = [(slot, sum(tokens for _, tokens in run)) for slot, run in runs]
        if len(merged) == 1:
            return route(self.model, merged[0][0])
        return route(self.model, segments=merged)

    def states(self, inputs: Mapping[str, Any], model: Any = None) -> Tensor:
        """Hidden states (T, W) of a pass over one row, of this model or another."""
        with autocast(self.device, self.precision):
            output = (model or self.model).get_decoder()(**inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden_NW: Tensor, model: Any = None) -> Tensor:
        """Logits (N, V), float32, of this model or another.

        The output map's own number format does the arithmetic.
        """
        model = model or self.model
        weight = output_head(model).weight
        return capped(linear(hidden_NW.to(weight.dtype), weight).float(), softcap_of(model))

    def order(self, slot: int | None) -> int:
        """See `ModelRunner.order`."""
        return route_order(slot)

    def use(self, slot: int) -> None:
        """Nothing to do: adapters stay as long as the engine."""

    def leave(self, slot: int) -> None:
        """See `use`."""

    def rest(self) -> None:
        """See `use`."""


class FusedRunner:
    """A model taken over to serve: its maps fused, adapters in slots beside them.

    Args:
        model: A causal language model with attention "laura", without adapters.
        precision: float32 or bfloat16, for matrices, adapters, keys and values.
        slots: Most adapters in memory.
        max_rank: Highest rank of an adapter.

    Attributes:
        slots: The adapters.
        weight_bytes: Memory of the weights.

    Raises:
        ModelError: the model's output map is not a plain one.
    """

    def __init__(
        self,
        model: Any,
        precision: torch.dtype = torch.float32,
        slots: int = 16,
        max_rank: int = 64,
    ) -> None:
        weight = output_head(model).weight.detach()
        self.model, self.device = model.eval(), weight.device
        self.geometry = geometry_of(model.config, precision)
        self._output = PackedLinear(weight, shared=True)
        fused, self._current = fuse_linears(model, precision)
        self.decoder = decoder_for(model, fused)
        plain = sum(one.untyped_storage().nbytes() for one in model.parameters())
        self.weight_bytes = plain + sum(one.product.bytes for one in fused)
        groups = [one.group for one in fused]
        self.slots = Slots(groups, slots, max_rank, precision, self.device)

    def hidden(
        self, ids: Sequence[int], positions: Sequence[int], segments: Segments, work: BatchAttention
    ) -> Tensor:
        """See `ModelRunner.hidden`."""
        self._current.prepare(segments, self.device)
        return self.decoder(ids, positions, work)

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """Logits (N, V), float32."""
        logits = self._output(hidden_NW.to(self._output.dtype)).float()
        return capped(logits, softcap_of(self.model))

    def order(self, slot: Slot | None) -> tuple[int, int]:
        """See `ModelRunner.order`."""
        return slot_order(slot)

    def use(self, slot: Slot) -> None:
        """One more sequence goes through a slot, which stays meanwhile."""
        self.slots.use(slot)

    def leave(self, slot: Slot) -> None:
        """One sequence less goes through a slot."""
        self.slots.leave(slot)

    def rest(self) -> None:
        """Forget the last pass's batch, so that it keeps no adapter in memory."""
        self._current.clear()
