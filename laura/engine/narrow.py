"""Maps that are fast for the few rows of a step of generation; see `device.linear`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from laura.models.device import linear
from laura.models.lora import lora_layers


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
    """Within the block, Linears are fast for few rows; afterwards they are as they were.

    Plain ones are exchanged, those with adapters are told. The output map stays: who
    reads it asks for its weight.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    changed: list[tuple[nn.Module, str, nn.Linear]] = []
    adapted = list(lora_layers(model).values())
    before = [layer.product for layer in adapted]
    try:
        for layer in adapted:
            layer.product = linear
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child is not head:
                    changed.append((parent, name, child))
                    setattr(parent, name, NarrowLinear(child).train(child.training))
        yield
    finally:
        for layer, product in zip(adapted, before, strict=True):
            layer.product = product
        for parent, name, child in changed:
            setattr(parent, name, child)
