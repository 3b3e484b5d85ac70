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
STRETCH = 64  # words


def weights(tokens: Tokens, strength: float) -> Tensor:
    """Entropy of the likeliest tokens as a share of the largest there could be, (N)."""
    count = min(LIKELIEST, tokens.probabilities_NV.shape[1])
    likeliest = largest(tokens.probabilities_NV, count)
    shares = likeliest / likeliest.sum(dim=1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(dim=1)
    return (entropy / math.log(count)).pow(strength)


def largest(values_NV: Tensor, count: int) -> Tensor:
    """The largest of each row, (N, count), in no order; several times as fast as `topk` of it all.

    They lie in no more stretches of the row than they are: in those with the largest maxima.
    """
    whole = values_NV.shape[1] // STRETCH
    if whole <= count:
        return values_NV.topk(count, sorted=False).values
    stretches = values_NV[:, : whole * STRETCH].unflatten(1, (whole, STRETCH))
    best = stretches.amax(2).topk(count, sorted=False).indices
    candidates = stretches.gather(1, best[:, :, None].expand(-1, -1, STRETCH)).flatten(1)
    rest = values_NV[:, whole * STRETCH :]
    return torch.cat([candidates, rest], 1).topk(count, sorted=False).values
