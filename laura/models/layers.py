"""The decoder layers of a model, and those that an arm names.

While it is trained a decoder may drop, on attention weights and on the residual stream:

    attention:  dropout(softmax(q kᵀ)) v
    residual:   x + dropout(attention(norm(x))),  x + dropout(mlp(norm(x)))

Biderman et al. 2024, arXiv:2405.09673, figure 4, compares LoRA with the first as a
regulariser; the second stands where GPT-2 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from laura.models.families import family_of
from laura.results.errors import ModelError


def decoder_layers(model: Any) -> nn.ModuleList:
    """The model's decoder layers, in order (`load.py` has checked that it has such a list)."""
    layers: nn.ModuleList = model.get_decoder().layers
    return layers


def chosen_layers(model: Any, numbers: Sequence[int]) -> list[nn.Module]:
    """The layers with these numbers, counted from 0.

    Raises:
        ModelError: the model has no such layer.
    """
    layers = decoder_layers(model)
    strange = [number for number in numbers if not 0 <= number < len(layers)]
    if strange:
        raise ModelError(
            f"layers names {', '.join(map(str, strange))}, but this model's {len(layers)} decoder "
            f"layers are numbered 0 to {len(layers) - 1}"
        )
    return [layers[number] for number in numbers]


def names_within(model: Any, names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Those of the named modules that lie in the layers with these numbers.

    Raises:
        ModelError: the model has no such layer, or none of the modules lies there.
    """
    chosen = chosen_layers(model, numbers)
    inside = tuple(f"{name}." for name, module in model.named_modules() if module in chosen)
    found = [name for name in names if name.startswith(inside)]
    if not found:
        raise ModelError(f"none of the {len(names)} targets lies in layers {list(numbers)}")
    return found


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
            block = _attention(model, layer)
            if attention is not None:
                if not hasattr(block, "attention_dropout"):
                    kind = type(block).__name__
                    raise ModelError(f"{kind} has no attention_dropout; leave it out of the arm")
                before.append((block, block.attention_dropout))
                block.attention_dropout = attention
            if residual:
                drop = _dropper(residual)
                parts: tuple[Any, Any] = (block, layer.mlp)
                hooks += [part.register_forward_hook(drop) for part in parts]
                block.residual_dropout = residual  # for whoever asks what draws at random
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in decoder_layers(model) if residual else ():
            _attention(model, layer).__dict__.pop("residual_dropout", None)
        for block, share in before:
            block.attention_dropout = share


def _attention(model: Any, layer: nn.Module) -> Any:
    return layer.get_submodule(family_of(model.config.model_type).attention)


def drops(module: nn.Module) -> bool:
    """Whether a module draws at random what it drops while it is trained."""
    shares = (
        getattr(module, name, 0)
        for name in ("p", "dropout", "attention_dropout", "residual_dropout")
    )
    return any(isinstance(share, float) and share > 0 for share in shares)


def _dropper(share: float) -> Callable[[nn.Module, Any, Any], Any]:
    def drop(block: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return functional.dropout(output, share, block.training)
        # Attention blocks also hand out their weights, which stay as they are.
        return (functional.dropout(output[0], share, block.training), *output[1:])

    return drop


@contextmanager
def exchanged(model: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> Iterator[None]:
    """Within the block others stand in the places of modules; afterwards the originals are back.

    The output map stays: loss and engine read its weight.

    Args:
        model: The model.
        other: What stands for a module, or None. Innermost modules come first: who takes over
            the modules of another finds them as they are by then.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    changed: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in reversed(list(model.modules())):
            for name, child in list(parent.named_children()):
                stands_in = None if child is head else other(child)
                if stands_in is not None:
                    changed.append((parent, name, child))
                    # What hangs on the original, such as dropout, goes on through the other.
                    stands_in._forward_hooks = child._forward_hooks
                    setattr(parent, name, stands_in.train(child.training))
        yield
    finally:
        for parent, name, child in changed:
            setattr(parent, name, child)
