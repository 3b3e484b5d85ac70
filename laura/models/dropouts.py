"""Dropout inside a decoder while it is trained: on attention weights, on the residual stream.

    attention:  dropout(softmax(q kᵀ)) v
    residual:   x + dropout(attention(norm(x))),  x + dropout(mlp(norm(x)))

Biderman et al. 2024, arXiv:2405.09673, figure 4, compares LoRA with the first as a
regulariser; the second stands where GPT-2 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from laura.models.layers import decoder_layers
from laura.results.errors import ModelError


@contextmanager
def dropping(model: Any, attention: float | None, residual: float) -> Iterator[None]:
    """Within the block, the decoder drops while it is in training mode.

    Args:
        model: A causal language model.
        attention: Share of the attention weights set to zero; None leaves the model's own.
        residual: Share of the outputs of attention and MLP blocks set to zero.

    Raises:
        ModelError: this kind of model has no dropout on its attention.
    """
    before: list[tuple[Any, float]] = []
    hooks = []
    try:
        for layer in decoder_layers(model):
            blocks: tuple[Any, Any] = (layer.self_attn, layer.mlp)
            block = blocks[0]
            if attention is not None:
                if not hasattr(block, "attention_dropout"):
                    kind = type(block).__name__
                    raise ModelError(f"{kind} has no attention_dropout; leave it out of the arm")
                before.append((block, block.attention_dropout))
                block.attention_dropout = attention
            if residual:
                drop = _dropper(residual)
                hooks += [part.register_forward_hook(drop) for part in blocks]
                block.residual_dropout = residual  # for whoever asks what draws at random
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in decoder_layers(model) if residual else ():
            layer.self_attn.__dict__.pop("residual_dropout", None)
        for block, share in before:
            block.attention_dropout = share


def _dropper(share: float) -> Callable[[nn.Module, Any, Any], Any]:
    def drop(block: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return functional.dropout(output, share, block.training)
        # Attention blocks also hand out their weights, which stay as they are.
        return (functional.dropout(output[0], share, block.training), *output[1:])

    return drop
