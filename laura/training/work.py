"""Floating-point operations of training as a formula over shapes; no torch.

A product of (N x I) by (I x O) counts 2 N I O. Per trained matrix the forward
pass is one product and the backward pass two; a frozen matrix needs only one
backward (Schulman et al. 2025, LoRA Without Regret). Layers below everything that is
trained need none. Attention counts the pairs that are computed. DoRA's lengths, taken
once a pass, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    frozen: int
    trained: int
    head: int
    head_trained: bool
    attention: int
    passed: int = 0
    passed_attention: int = 0


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
    return body + head + pairs * 2 * 2 * (3 * work.attention - 2 * work.passed_attention)
