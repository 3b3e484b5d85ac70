"""Token weights: one file each beside this one, one line each in `recipe/token_weights.py`.

A file has one function, `weights(probabilities_NV, targets_N)`: the model's next-token
distributions (float32, not to be changed) and the tokens that came, N of them, to N factors
of the tokens' gradients. They are constants to the gradient: what is followed is that of
sum_t w_t * -ln p_t. Losses that are logged, validated and measured stay plain cross-entropy,
so that arms can be compared.
"""

from __future__ import annotations

import importlib

from laura.models.losses import TokenWeights
from laura.recipe.token_weights import TOKEN_WEIGHTS


def load_token_weights(name: str | None) -> TokenWeights | None:
    """The function of an arm's `token_weight`; None where every token counts alike."""
    if name is None:
        return None
    weights: TokenWeights = importlib.import_module(TOKEN_WEIGHTS[name]).weights
    return weights
