"""LoRA+: B learns faster than A.

Everything an adapter trains except A takes the higher rate, as in PEFT's
`create_loraplus_optimizer`: B, and DoRA's magnitudes.
Source: Hayou et al. 2024, arXiv:2402.12354.
"""

from __future__ import annotations

from torch import nn

from laura.models.lora import lora_layers


def rate_ratios(model: nn.Module, ratio: float) -> dict[str, float]:
    """Names of the parameters that take a multiple of the rate, and the multiple.

    Args:
        model: A model with LoRA layers.
        ratio: Rate of B over rate of A; at 1 nothing differs.
    """
    if ratio == 1:
        return {}
    return {
        f"{name}.{inner}": ratio
        for name, layer in lora_layers(model).items()
        for inner, parameter in layer.named_parameters()
        if parameter.requires_grad and inner != "A"
    }
