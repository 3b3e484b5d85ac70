"""DFT: a token counts as much as the model believes it, w_t = p_t.

Source: Wu et al. 2025, arXiv:2508.05629; TRL's `loss_type="dft"` is the same.
"""

from __future__ import annotations

from torch import Tensor


def weights(probabilities_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The probability of each token that came, (N)."""
    return probabilities_NV.gather(1, targets_N[:, None])[:, 0]
