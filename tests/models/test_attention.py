"""Packed rows and chunked losses against unpacked rows and torch's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laura.models.attention import Documents
from laura.models.losses import loss_sum, packed_loss_sum

LENGTHS = [7, 1, 12, 5]


def _packed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    ids = torch.randint(3, 512, (1, sum(LENGTHS)))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return ids, positions


def test_a_packed_row_equals_its_documents_alone(tiny_model: Any) -> None:
    ids, positions = _packed()
    with torch.inference_mode():
        packed = tiny_model(ids, position_ids=positions, documents=Documents(LENGTHS)).logits[0]
        tiny_model.set_attn_implementation("eager")
        alone = [tiny_model(piece).logits[0] for piece in ids.split(LENGTHS, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_gradients_of_a_packed_row_equal_those_of_its_documents(tiny_model: Any) -> None:
    ids, positions = _packed()
    labels = ids[0].roll(-1)
    labels[torch.tensor(LENGTHS).cumsum(0) - 1] = -100
    inputs = {"input_ids": ids, "position_ids": positions, "documents": Documents(LENGTHS)}
    packed_loss_sum(tiny_model, inputs, labels, torch.float32).backward()
    packed = {n: p.grad.clone() for n, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    tiny_model.set_attn_implementation("eager")
    total = torch.zeros(())
    for piece in ids.split(LENGTHS, dim=1):
        if piece.shape[1] > 1:
            logits = tiny_model(piece).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum")
    total.backward()
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 700])
def test_chunked_loss_equals_cross_entropy(count: int) -> None:
    torch.manual_seed(1)
    head = torch.nn.Linear(16, 900, bias=False)
    hidden = torch.randn(count, 16, requires_grad=True)
    labels = torch.randint(0, 900, (count,))
    loss = loss_sum(hidden, head, labels, torch.float32)
    grads = torch.autograd.grad(loss * 0.3, [hidden, head.weight], allow_unused=True)
    logits = hidden @ head.weight.T
    reference = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, reference)
    if count:
        expected = torch.autograd.grad(reference * 0.3, [hidden, head.weight])
        for ours, theirs in zip(grads, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
