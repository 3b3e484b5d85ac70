"""FLOW: examples that are hard for the base count little, w_i = exp(-a L0_i / tau).

L0_i is the mean loss of an example's supervised tokens under the base, tau the median of these
over examples; the strength a is 1 in the paper. The paper takes the median over all examples,
here it is over the first few hundred of a run, which come in random order.
Source: arXiv:2502.02797.
"""

from __future__ import annotations

from torch import Tensor

from laura.models.losses import Tokens


def weights(tokens: Tokens, strength: float) -> Tensor:
    """The weight of each token's example, (N)."""
    assert tokens.base is not None
    return tokens.base.examples_N.mul(-strength / tokens.base.median).exp()
