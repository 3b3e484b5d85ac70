"""The state a model is in while it is measured, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


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
