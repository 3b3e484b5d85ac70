"""Floating-point operations of training, counted on the model as it stands; see `work.py`."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch import nn

from laura.data.packing import Row
from laura.models.layers import decoder_layers
from laura.models.lora import LoraLinear
from laura.models.losses import output_head
from laura.training.work import TrainingWork, training_flops


def count_work(model: Any) -> TrainingWork:
    """Count a model as it stands: with LoRA layers attached, or everything trained."""
    head = output_head(model)
    below = _below_training(model)
    outside = {id(module) for layer in below for module in layer.modules()}
    frozen = trained = passed = 0
    for module in model.modules():
        if isinstance(module, LoraLinear):
            trained += module.A[0].numel() + module.B[0].numel()
            frozen += sum(start.numel() for start in module.buffers(recurse=False))
        elif isinstance(module, nn.Linear) and module is not head:
            if module.weight.requires_grad:
                trained += module.weight.numel()
            elif id(module) in outside:
                passed += module.weight.numel()
            else:
                frozen += module.weight.numel()
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = config.num_attention_heads * width
    return TrainingWork(
        frozen,
        trained,
        head.weight.numel(),
        head.weight.requires_grad,
        each * config.num_hidden_layers,
        passed,
        each * len(below),
    )


def _below_training(model: Any) -> list[nn.Module]:
    """The first layers, as long as nothing is trained in them or before."""
    if any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return []
    untrained = takewhile(
        lambda layer: not any(p.requires_grad for p in layer.parameters()), decoder_layers(model)
    )
    return list(untrained)


def step_flops(work: TrainingWork, batch: list[Row]) -> int:
    """Operations of one training step on these rows, forward and backward."""
    tokens = sum(len(row.token_ids) for row in batch)
    labelled = sum(label >= 0 for row in batch for label in row.labels)
    pairs = sum(n * (n + 1) // 2 for row in batch for n in row.lengths)
    return training_flops(work, tokens, labelled, pairs)
