"""Validation loss of a model that is being trained, for `train.validate_every`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from laura.models.attention import Documents
from laura.models.device import autocast, resolve_precision
from laura.models.losses import packed_loss_sum
from laura.recipe.sections import TrainSection
from laura.results.task_result import VALIDATION
from laura.study.material import StudyData


def validator(model: Any, train: TrainSection, data: StudyData) -> Callable[[], float] | None:
    """Measures the model as it then is, in mean nats per token; None where nobody asks."""
    if train.validate_every is None:
        return None
    documents = data.documents[VALIDATION]
    dtype = resolve_precision(train.precision, model.device)

    def validate() -> float:
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

    return validate
