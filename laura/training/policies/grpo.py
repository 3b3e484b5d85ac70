"""GRPO: an answer counts as its reward is above others', A = a (r - mean) / (std + 1e-4).

Mean and deviation are over the answers to one question.

What is followed is the mean over the tokens of a step of -A ln p. Answers are learnt once, by the
model that wrote them, so that the ratio of old and new is 1 and nothing is clipped; a divergence
from the base is `penalty: kl` or `kl_reverse` beside it. The strength a is 1. As TRL's advantages
with `scale_rewards="group"`, and its `loss_type="dapo"`.
Source: Shao et al. 2024, arXiv:2402.03300; mean over tokens: arXiv:2503.14476.
"""

from __future__ import annotations

from torch import Tensor


def advantages(rewards_QS: Tensor, strength: float) -> Tensor:
    """What each of S answers to Q questions counts, (Q, S)."""
    mean, std = rewards_QS.mean(1, keepdim=True), rewards_QS.std(1, keepdim=True)
    return strength * (rewards_QS - mean) / (std + 1e-4)
