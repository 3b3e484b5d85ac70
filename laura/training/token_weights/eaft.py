"""EAFT: where the model is sure of itself a token counts little, w_t = H_k / ln k.

H_k is the entropy of the k = 20 most likely tokens, normalised among themselves.
Source: arXiv:2601.02151, whose exponent is 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LIKELIEST = 20


def weights(probabilities_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Entropy of the likeliest tokens as a share of the largest there could be, (N)."""
    count = min(LIKELIEST, probabilities_NV.shape[1])
    likeliest = probabilities_NV.topk(count, sorted=False).values
    shares = likeliest / likeliest.sum(dim=1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(dim=1)
    return entropy / math.log(count)
