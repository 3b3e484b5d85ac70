"""Cross-entropy over a large vocabulary without ever holding all its logits.

Logits exist only for positions that have a label, one chunk at a time, and
their gradient is taken while the chunk is at hand. Memory is chunk x vocabulary
(group x vocabulary when the output map is trained), whatever the number of tokens.

Shapes: N labelled positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from laura.models.device import copy_to
from laura.results.errors import ModelError

CHUNK_POSITIONS = 128
# Positions whose slopes enter the gradient of the output map together, a multiple of
# the chunk: each product passes over the whole (V, C) gradient once.
GROUP_POSITIONS = 512
# Words of the vocabulary whose gradient is taken at once: a product of all of them would
# be a second copy of the output map.
BLOCK_WORDS = 8192
IGNORED = -100

TokenWeights = Callable[[Tensor, Tensor], Tensor]
"""Distributions (N, V) and the tokens that came (N), to N factors of these tokens' gradients."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        labels_N: Tensor,
        dtype: torch.dtype,
        token_weights: TokenWeights | None,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden, weight = hidden_NC.to(dtype), weight_VC.to(dtype)
        grad_hidden = torch.empty_like(hidden_NC) if wants_hidden else None
        grad_weight: Tensor | None = None
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        count, chunk, group = len(hidden), CHUNK_POSITIONS, GROUP_POSITIONS
        slopes = hidden.new_empty(min(group, count), len(weight)) if wants_weight else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            if not (wants_hidden or wants_weight):
                logits = hidden[part] @ weight.T
                total += cross_entropy(logits.float(), labels_N[part], reduction="sum")
                continue
            loss, exact = _loss_and_slope(hidden[part] @ weight.T, labels_N[part], token_weights)
            total += loss
            first = start % group
            place = None if slopes is None else slopes[first : first + len(exact)]
            slope = exact.to(dtype) if place is None else place.copy_(exact)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ weight
            done = start + len(slope)
            if slopes is not None and (done == count or done % group == 0):
                used = first + len(slope)
                grad_weight = _add_product(
                    grad_weight, slopes[:used], hidden[done - used : done], weight_VC.dtype
                )
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the gradient of a large output map is not held twice.
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden.mul_(grads[0]),
            None if grad_weight is None else grad_weight.mul_(grads[0]),
            None,
            None,
            None,
        )


def _loss_and_slope(
    logits_NV: Tensor, labels_N: Tensor, token_weights: TokenWeights | None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses; softmax minus one-hot, weighted: the gradient by the logits, float32."""
    logits, target = logits_NV.float(), labels_N[:, None]
    highest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, target)
    # One exponential serves both the normaliser and the softmax.
    weights = logits.sub_(highest).exp_()
    norm = weights.sum(dim=-1, keepdim=True)
    slope = weights.div_(norm)
    factors = None if token_weights is None else token_weights(slope, labels_N)
    slope.scatter_add_(1, target, torch.full_like(chosen, -1))
    if factors is not None:
        slope.mul_(factors[:, None])
    return (norm.log() + highest - chosen).sum(), slope


def _add_product(
    total_VC: Tensor | None, slopes_PV: Tensor, hidden_PC: Tensor, dtype: torch.dtype
) -> Tensor:
    """`total` plus slopes^T hidden; without a total, the product is the sum so far."""
    words = slopes_PV.shape[1]
    empty = hidden_PC.new_empty
    result = empty(words, hidden_PC.shape[1], dtype=dtype) if total_VC is None else total_VC
    for start in range(0, words, BLOCK_WORDS):
        block = slice(start, start + BLOCK_WORDS)
        product = slopes_PV[:, block].T @ hidden_PC
        if total_VC is None:
            result[block] = product
        else:
            result[block] += product
    return result


def loss_sum(
    hidden_NC: Tensor,
    head: nn.Linear,
    labels_N: Tensor,
    dtype: torch.dtype,
    token_weights: TokenWeights | None = None,
) -> Tensor:
    """Sum of the negative log-likelihoods of N labels, in nats.

    Args:
        hidden_NC: Last hidden states at the labelled positions only.
        head: The model's output map, weight (V, C); tied or not.
        labels_N: Token ids to be predicted, all valid.
        dtype: Arithmetic of the products; sums are float32 throughout.
        token_weights: Factors of the labels' gradients; the sum itself is never weighted.

    Returns:
        A float32 scalar; divide by N for the mean.
    """
    if hidden_NC.shape[0] == 0:
        return hidden_NC.float().sum()  # zero, but still joined to the graph
    weight_VC = head.weight
    if not torch.is_grad_enabled():
        # Within a Function, only what requires a gradient tells whether one is wanted.
        hidden_NC, weight_VC = hidden_NC.detach(), weight_VC.detach()
    result: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NC, weight_VC, labels_N, dtype, token_weights
    )
    return result


def output_head(model: Any) -> nn.Linear:
    """The model's output map, checked to be a plain one.

    Raises:
        ModelError: the model scales or caps its logits, which chunking would skip.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(model.config, name, None)
        if value not in (None, 1.0, 1):
            raise ModelError(
                f"the model sets {name}={value}, which Llama-type models do not; "
                "use a model whose logits are head(hidden)"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError("the model's output map is not a Linear without bias; it is not supported")
    return head


def packed_loss_sum(
    model: Any,
    inputs: dict[str, Any],
    labels_T: Tensor,
    dtype: torch.dtype,
    token_weights: TokenWeights | None = None,
) -> Tensor:
    """Loss of one packed row: hidden states everywhere, logits only where labelled.

    Args:
        model: A causal language model.
        inputs: Keyword arguments of its decoder (input_ids, position_ids, documents).
        labels_T: Target predicted at each position of the row, -100 for none.
        dtype: Arithmetic of the output map.
        token_weights: Factors of the labels' gradients.

    Returns:
        Sum of nats over the labelled positions, a float32 scalar.
    """
    return packed_loss_sums(model, inputs, labels_T, dtype, token_weights)[0]


def packed_loss_sums(
    model: Any,
    inputs: dict[str, Any],
    labels_T: Tensor,
    dtype: torch.dtype,
    token_weights: TokenWeights | None = None,
) -> Tensor:
    """Losses of one packed row that is read B times, say with another adapter each.

    Args:
        model: A causal language model.
        inputs: As for `packed_loss_sum`, with input_ids of shape (B, T).
        labels_T: Target predicted at each position, the same for all; on the processor, where it
            is found out which have one, so that an accelerator is not waited for.
        dtype: Arithmetic of the output map.
        token_weights: Factors of the labels' gradients.

    Returns:
        Sums of nats over the labelled positions, shape (B), float32.
    """
    hidden_BTC = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    places = (labels_T != IGNORED).nonzero().squeeze(1)
    labels, head = copy_to(labels_T[places], hidden_BTC.device), output_head(model)
    places = copy_to(places, hidden_BTC.device)
    sums = [
        loss_sum(hidden_TC[places], head, labels, dtype, token_weights)
        for hidden_TC in hidden_BTC.unbind()
    ]
    return torch.stack(sums)
