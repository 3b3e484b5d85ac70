"""How a model computes what the scheduler wants: as it is, for evaluation, or taken over to serve.

One that is measured is brought into a state for that, and back (`evaluating`, `narrow`).

Shapes: T tokens of a pass, N predictions, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from laura.engine.adapter_slots import Slot, Slots
from laura.engine.batch_attention import BatchAttention
from laura.engine.decoder import ModuleDecoder, decoder_for
from laura.engine.fused_linear import PackedLinear, fuse_linears
from laura.engine.kv_cache import Geometry, geometry_of
from laura.engine.lora_batch import slot_order
from laura.engine.prefix_tree import route_order
from laura.models.device import autocast, linear
from laura.models.layers import exchanged
from laura.models.lora import lora_layers, route
from laura.models.losses import output_head

Segments = Sequence[tuple[Any, int]]
"""(slot or None for the base, tokens) pieces of a pass, in order."""


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

    def logits(self, hidden_NW: Tensor, head: nn.Linear | None = None) -> Tensor:
        """Logits (N, V), float32; the head's own number format does the arithmetic."""
        weight = (head or self.head).weight
        return linear(hidden_NW.to(weight.dtype), weight).float()

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
        return self._output(hidden_NW.to(self._output.dtype)).float()

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


@contextmanager
def evaluating(
    models: Sequence[nn.Module], precision: torch.dtype, keep: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Within the block: no dropout, no gradients, matrices ready in `precision`.

    Training modes and weights are put back at the end, also after an error.

    Args:
        models: Models in use; the same one may come twice.
        precision: See `lowered_weights`.
        keep: Modules whose weights stay as they are.
    """
    distinct = list(dict.fromkeys(models))
    modes = [(module, module.training) for model in distinct for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        try:
            for model in distinct:
                model.eval()
                stack.enter_context(lowered_weights(model, precision, keep))
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def lowered_weights(
    model: nn.Module, precision: torch.dtype, keep: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Within the block, matrices stand ready in `precision`; afterwards the originals do.

    Autocast would cast every frozen matrix again in every pass, which takes longer
    than a step of generation itself. Embeddings, vectors and the modules of `keep`
    stay as they are. Costs one copy of the matrices in `precision`; nothing for float32.
    """
    changed: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules() if precision != torch.float32 else ():
            if isinstance(module, nn.Embedding) or module in keep:
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dim() >= 2 and parameter.dtype == torch.float32:
                    changed.append((module, name, parameter))
                    lower = nn.Parameter(parameter.detach().to(precision), requires_grad=False)
                    module._parameters[name] = lower
        yield
    finally:
        for module, name, parameter in changed:
            module._parameters[name] = parameter


class NarrowLinear(nn.Module):
    """A Linear that shares its weight with another and is never trained."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., out)."""
        return linear(x, self.weight, self.bias)


@contextmanager
def narrow(model: nn.Module) -> Iterator[None]:
    """Within the block, Linears are fast for few rows (`device.linear`), then as they were.

    Plain ones are exchanged, those with adapters are told.
    """
    adapted = list(lora_layers(model).values())
    before = [layer.product for layer in adapted]
    try:
        for layer in adapted:
            layer.product = linear
        with exchanged(model, lambda one: NarrowLinear(one) if type(one) is nn.Linear else None):
            yield
    finally:
        for layer, product in zip(adapted, before, strict=True):
            layer.product = product
