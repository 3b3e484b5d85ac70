"""Floating-point operations of training: a formula over shapes, and a model counted as it stands.

A product of (N x I) by (I x O) counts 2 N I O. Per trained matrix the forward
pass is one product and the backward pass two; a frozen matrix needs only one
backward (Schulman et al. 2025, LoRA Without Regret). Layers below everything that is
trained need none. Attention counts the pairs that are computed. DoRA's lengths, taken
once a pass, are not counted.

No torch before a model is counted, so that a plan can use the formula too.
"""

from __future__ import annotations

from collections import Counter
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
        frozen: Elements of Linear weights that are not trained; of experts, here and below, those
            that a token goes through.
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

    from laura.models.experts import Experts, stacked_experts
    from laura.models.families import family_of
    from laura.models.layers import decoder_layers
    from laura.models.lora import LoraLinear
    from laura.models.losses import output_head

    head = output_head(model)
    below = _below_training(model, decoder_layers(model))
    outside = {id(module) for layer in below for module in layer.modules()}
    stacked = {id(module) for module in stacked_experts(model).values()}
    opened = [one for one in model.modules() if isinstance(one, Experts)]
    mixed = stacked | {id(module) for one in opened for module in one.modules()}
    counts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for module in model.modules():
        count = counts[id(module) in mixed]
        if isinstance(module, LoraLinear):
            count["trained"] += module.multiplied
            own = module.named_buffers(recurse=False)
            count["frozen"] += sum(b.numel() for name, b in own if name.startswith("start_"))
        elif id(module) in stacked or (isinstance(module, nn.Linear) and module is not head):
            weights = list(module.parameters()) if id(module) in stacked else [module.weight]
            elements = sum(weight.numel() for weight in weights)
            count["base"] += elements * reads_base
            kind = "passed" if id(module) in outside else "frozen"
            count["trained" if weights[0].requires_grad else kind] += elements
    config, key = model.config, family_of(model.config.model_type).experts
    # A token goes through some of the experts, which are all alike.
    active, experts = (config.num_experts_per_tok, getattr(config, key)) if key else (1, 1)
    work = {
        name: counts[False][name] + counts[True][name] * active // experts
        for name in ("frozen", "trained", "passed", "base")
    }
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = config.num_attention_heads * width
    return TrainingWork(
        work["frozen"],
        work["trained"],
        head.weight.numel(),
        head.weight.requires_grad,
        each * config.num_hidden_layers,
        work["passed"],
        each * len(below),
        work["base"],
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
