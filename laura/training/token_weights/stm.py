"""STM: tokens that surprise the base are not learnt, w_t = 1 where p0_t >= a, else 0.

The paper drops tokens whose perplexity exp(l0_t) under the base is above c; the strength is
a = 1 / c, and its c = 2.5 makes .4.
Source: arXiv:2501.14315.
"""

from __future__ import annotations

from torch import Tensor

from laura.models.losses import Tokens


def weights(tokens: Tokens, strength: float) -> Tensor:
    """1 for each token that the base gives at least this probability, else 0, (N)."""
    assert tokens.base is not None
    return tokens.base.tokens_N.neg().exp().ge(strength).float()
