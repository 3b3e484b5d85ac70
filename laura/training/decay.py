"""Decoupled weight decay by name of its rule, toward zero or toward the base.

    w <- w - share * (w - target),   before the optimiser's own step
    pytorch:   share = weight_decay * rate              (torch.optim.AdamW)
    composer:  share = weight_decay * rate / peak rate  (the paper's library)

The target is zero, or the weight the run began with: L2-SP, decoupled like the rest.
Source: Loshchilov and Hutter 2019, arXiv:1711.05101; Li et al. 2018, arXiv:1802.01483
(L2-SP); Biderman et al. 2024, arXiv:2405.09673, which trained with the second rule.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

DecayRule = Literal["pytorch", "composer"]


class Decay:
    """Decays an optimiser's weights before each of its steps.

    Args:
        optimiser: Its groups have `lr`, `initial_lr` and the coefficient `decay`; their own
            `weight_decay` is 0.
        rule: How the share follows the rate.
        toward_base: Whether the target is what the weights are now, which costs a
            copy of them; else zero.
    """

    def __init__(
        self, optimiser: torch.optim.Optimizer, rule: DecayRule, *, toward_base: bool
    ) -> None:
        self.rule = rule
        self.targets: dict[Tensor, Tensor] = {}
        for group in optimiser.param_groups if toward_base else ():
            if group["decay"]:
                self.targets.update((p, p.detach().clone()) for p in group["params"])
        optimiser.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimiser.param_groups:
            if not group["decay"]:
                continue
            share = group["decay"] * group["lr"]
            if self.rule == "composer":
                share /= group["initial_lr"]
            parameters = [p for p in group["params"] if p.grad is not None]
            if self.targets:
                torch._foreach_lerp_(parameters, [self.targets[p] for p in parameters], share)
            else:
                torch._foreach_mul_(parameters, 1 - share)
