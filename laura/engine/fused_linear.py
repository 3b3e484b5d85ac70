"""A model's linear maps made ready for serving: fused, packed, with adapters beside them.

Maps that read the same input (q, k, v; gate, up) become one product. A LoRA batch, set for one
pass, says which tokens go through which adapter (lora_batch.py):

    y = W x + B_s (A_s x)   for the tokens of slot s (the factor alpha / r is in B)

The weight lies as the processor's product wants it: oneDNN packs it once and then needs no
further copy of it in any pass. Two rows or more: each row's result is the same to the last bit
whatever its neighbours are, which an answer in a batch owes to the same answer alone; so a
single row is computed as two. The same holds for a weight that is not packed, with the same
bits. Where oneDNN packs nothing of the weight's format (`device.packs_weights`) the product is
torch's own, without that promise.

oneDNN makes a kernel for every number of rows, in milliseconds, and keeps a thousand of
them. Rows are filled up, so that passes of all lengths need few (`filled_rows`).

Shapes: N rows, T tokens of the pass, I in, O out of all maps of a group, K slots of a batched
product, M tokens of each, P = sum of K * M, R ranks of a group; of a stack of m maps r rank
and o width of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from laura.engine.adapter_slots import LinearGroup, Slot
from laura.engine.lora_batch import LoraBatch, SlotRun, lora_batch_of
from laura.models.device import linear, packs_weights

FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# Each number of rows up to this has kernels of its own: filling up would cost more.
FEW_ROWS = 8

_OPS: Any = torch.ops.mkldnn


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
        rows = pad(x_NI, (0, 0, 0, more)) if more else x_NI
        found: Tensor = _OPS._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return found[: len(x_NI)]


def filled_rows(rows: int) -> int:
    """How many rows are computed where so many are wanted: at most a quarter more beyond 32."""
    if rows <= FEW_ROWS:
        return max(2, rows)
    piece = 8 if rows <= 64 else 16 if rows <= 128 else 32
    return -(-rows // piece) * piece


@dataclass
class CurrentBatch:
    """Where the batch of the coming pass stands, for all maps of a model."""

    batch: LoraBatch = field(default_factory=LoraBatch)
    _made_for: tuple[object, ...] = ()

    def prepare(self, segments: Sequence[tuple[Slot | None, int]], device: torch.device) -> None:
        """Plan the coming pass; while the same answers run, the last batch stays.

        Args:
            segments: (slot or None for the base, tokens) in the order of the pass.
            device: Where the model lives.
        """
        made_for = tuple((slot and slot.where, tokens) for slot, tokens in segments)
        if made_for != self._made_for:
            self.clear()
            self.batch, self._made_for = lora_batch_of(segments, device), made_for

    def clear(self) -> None:
        """Forget the batch, so that it keeps no adapter in memory."""
        self.batch.forget()
        self.batch, self._made_for = LoraBatch(), ()


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
        y_TO = self.product(x_TI)
        batch = self.current.batch
        for lookup in batch.lookups:
            lookup.add(self.group, x_TI, y_TO)
        for run in batch.aligned:
            self._add(run, x_TI[run.tokens], y_TO[run.tokens])
        if batch.gather is not None:
            assert batch.back is not None
            x_PI = x_TI.index_select(0, batch.gather)
            # The row behind the last is for tokens that are in none of these runs.
            sums_PO = y_TO.new_zeros(len(x_PI) + 1, y_TO.shape[1])
            for run in batch.padded:
                self._add(run, x_PI[run.tokens], sums_PO[run.tokens])
            y_TO[: len(batch.back)] += sums_PO.index_select(0, batch.back)
        return y_TO

    def _add(self, run: SlotRun, x_PI: Tensor, y_PO: Tensor) -> None:
        """Add B (A x) of neighbouring slots' tokens to y."""
        factors = run.factors(self.group)
        if factors is None:
            return
        inner_KMR = torch.bmm(x_PI.unflatten(0, (run.count, run.each)), factors.down_KIR)
        for stack, up_KmrO in factors.ups:
            inner_KMmr = inner_KMR[:, :, stack.ranks].unflatten(2, (-1, stack.rank))
            inner = inner_KMmr.transpose(1, 2).flatten(0, 1)
            found = torch.bmm(inner, up_KmrO.flatten(0, 1)).unflatten(0, (run.count, -1))
            y_KMmo = y_PO[:, stack.columns].view(run.count, run.each, -1, stack.out)
            # Not baddbmm: into columns of a wider matrix it goes slot by slot.
            y_KMmo.add_(found.transpose(1, 2))


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


def fuse_linears(model: nn.Module, dtype: torch.dtype) -> tuple[list[FusedLinear], CurrentBatch]:
    """Make a model's maps ready; it serves only from then on.

    Weights of the maps are held once, in `dtype`.

    Returns:
        The joined maps, layer by layer in the order of FUSED, and the current on which the
        batch of a pass is put.
    """
    current, made = CurrentBatch(), []
    names = {module: name for name, module in model.named_modules()}
    for layer in model.get_decoder().layers:  # type: ignore[operator]
        for members in FUSED:
            maps = [layer.get_submodule(member) for member in members]
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
