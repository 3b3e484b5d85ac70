"""The validation loss of a model while it is in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from laura.models.attention import Documents
from laura.models.device import autocast
from laura.models.losses import packed_loss_sum
from laura.models.requests import TokenDocument


def validation_loss(model: Any, documents: Sequence[TokenDocument], dtype: torch.dtype) -> float:
    """Mean loss over the supervised tokens of some documents, nats per token.

    Args:
        model: Set to evaluate, and left so.
        documents: Held-out documents.
        dtype: Arithmetic of the passes.
    """
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), autocast(model.device, dtype):
        for document in documents:
            ids = torch.tensor([document.token_ids], device=model.device)
            wanted = torch.tensor([*document.supervised[1:], False], device=model.device)
            labels = torch.where(wanted, ids[0].roll(-1), -100)
            inputs = {"input_ids": ids, "documents": Documents([ids.shape[1]])}
            total += float(packed_loss_sum(model, inputs, labels, dtype))
            count += int(wanted.sum())
    return total / count
