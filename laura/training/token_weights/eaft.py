"""EAFT: where the model is sure of itself a token counts little, w_t = (H_k / ln k)^a.

H_k is the entropy of the k = 20 most likely tokens, normalised among themselves. The strength
a is 1 in the paper.
Source: arXiv:2601.02151.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from laura.models.losses import Tokens

LIKELIEST = 20


def weights(tokens: Tokens, strength: float) -> Tensor:
    """Entropy of the likeliest tokens as a share of the largest there could be, (N)."""
    count = min(LIKELIEST, tokens.probabilities_NV.shape[1])
    likeliest = tokens.probabilities_NV.topk(count, sorted=False).values
    shares = likeliest / likeliest.sum(dim=1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(dim=1)
    return (entropy / math.log(count)).pow(strength)
