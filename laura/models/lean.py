"""Parts of a Llama block that keep less for the gradient while a model is trained.

The values are transformers' own, rounded at the same places; only what is kept
differs. A norm keeps its input, which the residual stream holds anyway, and
hands its output on in the pass's arithmetic, so that the maps that read it
share one copy. The gated unit keeps what its two maps give, and makes their product
again when the gradient of the third map asks for it. A trained map in mixed precision
casts its weight again for the gradient instead of keeping the cast.

Only modules of exactly this form are exchanged; others stay as they are.

With recomputation (gradient checkpointing; Chen et al. 2016, arXiv:1604.06174) a layer keeps
only what it reads. It is passed once more when its gradient is wanted, with the same random
draws and in the same arithmetic: not a bit of a gradient changes.

Shapes: N tokens, C width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from laura.models.device import arithmetic
from laura.models.layers import decoder_layers, exchanged


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, epsilon: float, dtype: torch.dtype
    ) -> Tensor:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
        inverse = square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_C, inverse)
        normed: Tensor = (wide * inverse).mul_(weight_C)
        return normed.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        slope = grads[0].float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (slope * wide * inverse).flatten(0, -2).sum(0).to(weight.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            slope = slope * weight
            pull = (slope * wide).sum(-1, keepdim=True).mul_(inverse.pow(3)) / x.shape[-1]
            grad_x = slope.mul_(inverse).addcmul_(wide, pull, value=-1).to(x.dtype)
        return grad_x, grad_weight, None, None


class _GatedUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = functional.silu(gate).mul_(grads[0])
        grad_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return grad_gate, grad_up


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate).mul_(up)


class _TrainedMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
        cast = x.to(dtype)
        ctx.save_for_backward(cast, weight_OI)
        ctx.input_dtype = x.dtype
        return functional.linear(cast, weight_OI.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cast, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = (grads[0] @ weight.to(cast.dtype)).to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            product = grads[0].flatten(0, -2).T @ cast.flatten(0, -2)
            grad_weight = product.to(weight.dtype)
        return grad_x, grad_weight, None


class LeanNorm(nn.Module):
    """A root-mean-square norm, weight * x / sqrt(mean(x^2) + epsilon)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        # One dictionary for both: who exchanges the parameter, as FSDP does, does so in the
        # original too, which would keep the old one in memory.
        self._parameters, self.epsilon = norm._parameters, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, in the arithmetic of the pass."""
        result: Tensor = _RmsNorm.apply(x, self.weight, self.epsilon, arithmetic(x))  # type: ignore[no-untyped-call]
        return result


class LeanGatedUnit(nn.Module):
    """down(silu(gate(x)) * up(x)), with the block's own maps."""

    def __init__(self, unit: Any, make_again: bool) -> None:
        super().__init__()
        self.make_again = make_again
        self.gate_proj, self.up_proj, self.down_proj = unit.gate_proj, unit.up_proj, unit.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output, (..., C)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        product: Tensor = _GatedUnit.apply(gate, up)  # type: ignore[no-untyped-call]
        made_again = self.make_again and _made_again(product, gate.detach(), up.detach())
        with made_again or nullcontext():
            result: Tensor = self.down_proj(product)
        return result


class LeanLinear(nn.Module):
    """A trained Linear without bias, x W^T in the arithmetic of the pass."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._parameters = linear._parameters  # as LeanNorm

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., out)."""
        # Autocast keeps a cast of every trained weight until the pass has ended.
        result: Tensor = _TrainedMap.apply(x, self.weight, arithmetic(x))  # type: ignore[no-untyped-call]
        return result


def _made_again(product: Tensor, gate: Tensor, up: Tensor) -> saved_tensors_hooks:
    """Whatever keeps the product for its gradient keeps nothing, and makes it again."""
    place = product.data_ptr()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        same = kept.data_ptr() == place and kept.numel() == product_size
        return kept.shape if same and kept.is_contiguous() else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else _gated(gate, up).view(kept)

    product_size = product.numel()
    return saved_tensors_hooks(pack, unpack)


@contextmanager
def lean(model: Any, recompute: bool = False) -> Iterator[None]:
    """Within the block, the parts named above keep less; afterwards the originals are back.

    Args:
        model: A causal language model.
        recompute: Whether each of its layers is passed once more for its gradient. Whoever
            sets what a pass reads besides its inputs, such as a route, keeps it set until then.
    """
    layers = decoder_layers(model) if recompute else ()
    # Hooks of our own within a layer would hide what they keep from torch's.
    with exchanged(model, functools.partial(_thinner, make_again=not recompute)):
        for layer in layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _thinner(module: nn.Module, make_again: bool) -> nn.Module | None:
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    if type(module) is LlamaRMSNorm:
        return LeanNorm(module)
    if type(module) is LlamaMLP and getattr(module.config, "hidden_act", None) == "silu":
        return LeanGatedUnit(module, make_again)
    if type(module) is nn.Linear and module.bias is None and module.weight.requires_grad:
        return LeanLinear(module)
    return None
