"""What is done to a tuned model after training, without more of it.

Scaling (WiSE-FT, rewind): the way from the base is shortened,

    θ = θ0 + a (θ - θ0);   of LoRA's product a times as much, of OFT the Cayley rotation of a Q.

Intruders: among the TOP leading singular directions of a tuned weight those are intruders whose
left vector has no cosine of COSINE or more with any of the base's; they are made λ times as
long, and what is then between the weights goes back to LoRA's rank.

    W ← W + (λ - 1) Σ σ u vᵀ

At a factor of 1 both leave everything as it is, bit for bit.

Source: Wortsman et al. 2021, arXiv:2109.01903 (scaling); Shuttleworth et al. 2024, arXiv:2410.21228
(intruders), with the numbers of PEFT 0.21, tuners/lora/intruders.py.
Shapes: I in, O out, R rank, K singular directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from laura.models.device import exact
from laura.models.layers import decoder_layers
from laura.models.lora import lora_layers
from laura.models.oft import OftLinear

TOP, COSINE = 10, 0.5


@torch.no_grad()
def scale(model: Any, base: Any, factor: float) -> None:
    """Shorten the way from the base, in place.

    Args:
        model: With one adapter attached, or trained whole.
        base: What a model that was trained whole began as.
        factor: a.
    """
    layers = lora_layers(model)
    for layer in layers.values():
        (layer.R if isinstance(layer, OftLinear) else layer.B).mul_(factor)
    start = {} if layers else dict(base.named_parameters())
    for name, tuned in model.named_parameters() if not layers else ():
        tuned.copy_(torch.lerp(start[name].float(), tuned.float(), factor))


@torch.no_grad()
def lessen_intruders(model: Any, base: Any, factor: float) -> None:
    """Make the intruders among the directions of every adapted or trained map λ times as long."""
    layers = lora_layers(model)
    for layer in layers.values() if factor != 1 else ():
        weight_OI, tuned_OI = layer.weight.float(), layer.tuned()
        if (intruders_OI := _intruders(weight_OI, tuned_OI)) is not None:
            update_OI = tuned_OI - weight_OI + (factor - 1) * intruders_OI
            u_OK, s_K, v_KI = torch.linalg.svd(update_OI / layer.scales[0], full_matrices=False)
            rank = layer.A.shape[1]
            root_R = s_K[:rank].sqrt()
            layer.A[0] = root_R[:, None] * v_KI[:rank]
            layer.B[0] = u_OK[:, :rank] * root_R
    whole = decoder_layers(model) if not layers and factor != 1 else ()
    for part, before in zip(whole, decoder_layers(base), strict=False):
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear):
                weight_OI = before.get_parameter(f"{name}.weight").float()
                if (intruders_OI := _intruders(weight_OI, module.weight.float())) is not None:
                    module.weight.add_(intruders_OI.to(module.weight.dtype), alpha=factor - 1)


def _intruders(weight_OI: Tensor, tuned_OI: Tensor) -> Tensor | None:
    with exact(weight_OI.device):
        u_OK, s_K, v_KI = torch.linalg.svd(tuned_OI, full_matrices=False)
        before_OK = torch.linalg.svd(weight_OI, full_matrices=False).U
        closest_K = (u_OK[:, :TOP].T @ before_OK).abs().max(dim=1).values
        found = torch.where(closest_K < COSINE)[0]
        return (u_OK[:, found] * s_K[found]) @ v_KI[found] if len(found) else None


CHANGES: Mapping[str, Callable[[Any, Any, float], None]] = {
    "scale": scale,
    "intruders": lessen_intruders,
}
