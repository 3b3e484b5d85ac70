"""Reverse KL to the base, sum over tokens of KL(model || base): pi (ln (pi / pi_0) - KL).

The other direction of `kl.py`, derived here; it is what the measure `kl_reverse` tells.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slope(probabilities_NV: Tensor, base_NV: Tensor) -> Tensor:
    """Gradient of each token's divergence by the logits, (N, V)."""
    # pi ln pi is 0 where pi is.
    parts = -torch.special.entr(probabilities_NV) - probabilities_NV * base_NV
    slopes: Tensor = parts - probabilities_NV * parts.sum(dim=1, keepdim=True)
    return slopes
