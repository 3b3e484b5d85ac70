"""KL to the base, sum over tokens of KL(base || model): the slope is pi - pi_0.

Beside `token_weight: dft` it is ASFT (strength .1).
Source: arXiv:2509.04259 (forgetting follows this divergence); ASFT: arXiv:2509.23753.
"""

from __future__ import annotations

from torch import Tensor


def slope(probabilities_NV: Tensor, base_NV: Tensor) -> Tensor:
    """Gradient of each token's divergence by the logits, (N, V)."""
    return base_NV.exp_().neg_().add_(probabilities_NV)
