"""Floating-point operations of training: a formula over shapes, and a model counted as it stands.

A product of (N x I) by (I x O) counts 2 N I O. Per trained matrix the forward
pass is one product and the backward pass two; a frozen matrix needs only one
backward (Schulman et al. 2025, LoRA Without Regret). Layers below everything that is
trained need none. Attention counts the pairs that are computed. DoRA's lengths, taken
once a pass, are not counted.

No torch before a model is counted, so that a plan can use the formula too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from laura.data.packing import Row

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TrainingWork:
    """Multiply-add counts of a model, per token where not said otherwise.

    Attributes:
        frozen: Elements of Linear weights that are not trained.
        trained: Elements of Linear weights, and of A and B, that are trained.
        head: Elements of the output map, used at labelled positions only.
        head_trained: Whether the output map is trained.
        attention: Heads x head width x layers.
        passed: Elements of Linear weights below everything trained, passed forwards only.
        passed_attention: The part of `attention` that is passed forwards only.
        base: Elements of Linear weights of the base that a remedy passes forwards besides; 0 for
            none. Losses that a token weight reads are a little more, which is not counted.
    """

    frozen: int
    trained: int
    head: int
    head_trained: bool
    attention: int
    passed: int = 0
    passed_attention: int = 0
    base: int = 0


def training_flops(work: TrainingWork, tokens: int, labelled: int, pairs: int) -> int:
    """Operations of training, forward and backward.

    Args:
        work: The model's.
        tokens: That pass through it.
        labelled: Of these, those with a label.
        pairs: Query-key pairs; n (n + 1) / 2 of a document of n tokens.
    """
    body = tokens * (2 * work.passed + 2 * 2 * work.frozen + 3 * 2 * work.trained)
    head = labelled * 2 * work.head * (3 if work.head_trained else 2)
    # Forward: scores and values; backward: twice as much.
    attention = pairs * 2 * 2 * (3 * work.attention - 2 * work.passed_attention)
    again = 2 * (tokens * work.base + labelled * work.head + 2 * pairs * work.attention)
    return body + head + attention + (again if work.base else 0)


def count_work(model: Any, reads_base: bool = False) -> TrainingWork:
    """Count a model as it stands: with LoRA layers attached, or everything trained.

    Args:
        model: A causal language model.
        reads_base: Whether every pass goes through the base too.
    """
    from torch import nn

    from laura.models.layers import decoder_layers
    from laura.models.lora import LoraLinear
    from laura.models.losses import output_head

    head = output_head(model)
    below = _below_training(model, decoder_layers(model))
    outside = {id(module) for layer in below for module in layer.modules()}
    frozen = trained = passed = base = 0
    for module in model.modules():
        if isinstance(module, LoraLinear):
            trained += module.multiplied
            own = module.named_buffers(recurse=False)
            frozen += sum(buffer.numel() for name, buffer in own if name.startswith("start_"))
        elif isinstance(module, nn.Linear) and module is not head:
            base += module.weight.numel() * reads_base
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
        base,
    )


def _below_training(model: Any, layers: nn.ModuleList) -> list[nn.Module]:
    """The first layers, as long as nothing is trained in them or before."""
    if any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return []
    untrained = takewhile(
        lambda layer: not any(p.requires_grad for p in layer.parameters()), layers
    )
    return list(untrained)


def step_flops(work: TrainingWork, batch: list[Row]) -> int:
    """Operations of one training step on these rows, forward and backward."""
    tokens = sum(len(row.token_ids) for row in batch)
    labelled = sum(label >= 0 for row in batch for label in row.labels)
    pairs = sum(n * (n + 1) // 2 for row in batch for n in row.lengths)
    return training_flops(work, tokens, labelled, pairs)
