"""The state a model is in while it is measured or generates, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from laura.models.device import linear
from laura.models.lora import lora_layers


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
