"""The product y = W x + s B (A x) as one differentiable step.

Written as one step because the parts' sum is where time and memory go: the
update is added into the product in place, forwards and backwards, and only x
and A x are kept for the gradient. W is frozen and gets none.

For several adapters, each with as many tokens of its own, W is multiplied once for
all tokens, and the small products are batched.

Shapes: N tokens (of one adapter), S adapters, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        a, b = a_RI.to(x.dtype), b_OR.to(x.dtype) * scale
        inner_NR = x_NI @ a.T
        y_NO = x_NI @ weight_OI.T
        y_NO.addmm_(inner_NR, b.T)
        ctx.save_for_backward(x_NI, inner_NR, weight_OI, a, b)
        ctx.scale, ctx.dtypes, ctx.shape = scale, (a_RI.dtype, b_OR.dtype), x.shape
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, inner_NR, weight_OI, a, b = ctx.saved_tensors
        grad_NO = grads[0].reshape(-1, grads[0].shape[-1])
        grad_inner_NR = grad_NO @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight_OI).addmm_(grad_inner_NR, a).view(ctx.shape)
        grad_a = (grad_inner_NR.T @ x_NI).to(ctx.dtypes[0])
        # b carries the scale already, the parameter does not.
        grad_b = (grad_NO.T @ inner_NR).to(ctx.dtypes[1]) * ctx.scale
        return grad_x, None, grad_a, grad_b, None


class _LoraProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, a_SRI: Tensor, b_SOR: Tensor, scale: float
    ) -> Tensor:
        x_SNI = x.reshape(len(a_SRI), -1, x.shape[-1])
        a, b = a_SRI.to(x.dtype), b_SOR.to(x.dtype) * scale
        inner_SNR = x_SNI @ a.mT
        y_SNO = x_SNI @ weight_OI.T
        y_SNO.baddbmm_(inner_SNR, b.mT)
        ctx.save_for_backward(x_SNI, inner_SNR, weight_OI, a, b)
        ctx.scale, ctx.dtypes, ctx.shape = scale, (a_SRI.dtype, b_SOR.dtype), x.shape
        return y_SNO.view(*x.shape[:-1], y_SNO.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_SNI, inner_SNR, weight_OI, a, b = ctx.saved_tensors
        grad_SNO = grads[0].reshape(*x_SNI.shape[:2], -1)
        grad_inner_SNR = grad_SNO @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_SNO @ weight_OI).baddbmm_(grad_inner_SNR, a).view(ctx.shape)
        grad_a = (grad_inner_SNR.mT @ x_SNI).to(ctx.dtypes[0])
        # b carries the scale already, the parameter does not.
        grad_b = (grad_SNO.mT @ inner_SNR).to(ctx.dtypes[1]) * ctx.scale
        return grad_x, None, grad_a, grad_b, None


def lora_products(
    x: Tensor, weight_OI: Tensor, a_SRI: Tensor, b_SOR: Tensor, scale: float
) -> Tensor:
    """W x + scale * B_s (A_s x), where the s-th of S equal parts of the tokens is adapter s's.

    Args:
        x: Inputs (..., in) in the type all products run in; tokens in order, S divides them.
        weight_OI: The frozen weight, of the same type.
        a_SRI: Every adapter's A.
        b_SOR: Every adapter's B.
        scale: The same for all.

    Returns:
        Shape (..., out), with gradients for x, A and B.
    """
    result: Tensor = _LoraProducts.apply(x, weight_OI, a_SRI, b_SOR, scale)  # type: ignore[no-untyped-call]
    return result


def lora_product(
    x: Tensor,
    weight_OI: Tensor,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    product: Callable[..., Tensor] = functional.linear,
) -> Tensor:
    """W x + scale * B (A x) for x of shape (..., in); gradients for x, A and B.

    All products run in the type of `x`; `weight_OI` must already have it. `product`
    computes W x where there is no gradient.
    """
    if torch.is_grad_enabled():
        result: Tensor = _LoraProduct.apply(x, weight_OI, a_RI, b_OR, scale)  # type: ignore[no-untyped-call]
        return result
    x_NI = x.reshape(-1, x.shape[-1])
    y_NO = product(x_NI, weight_OI)
    y_NO.addmm_(x_NI @ a_RI.to(x.dtype).T, b_OR.to(x.dtype).T, alpha=scale)
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])
