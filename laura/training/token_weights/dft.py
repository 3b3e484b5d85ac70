"""DFT: a token counts as much as the model believes it, w_t = p_t^a.

The strength a is 1 in the paper and in TRL's `loss_type="dft"`. TALR is the same with a = 1 / tau
and weights whose mean over a step is 1; its tau follows the losses in the paper, and is fixed here.
Source: Wu et al. 2025, arXiv:2508.05629; TALR: arXiv:2509.20758.
"""

from __future__ import annotations

from torch import Tensor

from laura.models.losses import Tokens


def weights(tokens: Tokens, strength: float) -> Tensor:
    """The probability of each token that came, to the power of the strength, (N)."""
    return tokens.probabilities_NV.gather(1, tokens.targets_N[:, None])[:, 0].pow(strength)
