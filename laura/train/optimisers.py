"""AdamW as torch has it, and Lion with the rule of the paper's library.

Adding one: a function here and a line in OPTIMISERS (and its name in recipe.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from laura.recipe import TrainSection


class DecoupledLion(torch.optim.Optimizer):
    """Lion whose weight decay is decoupled from the learning rate.

        p <- p * (1 - wd * lr / lr_initial)
        p <- p - lr * sign(beta1 * m + (1 - beta1) * g)
        m <- beta2 * m + (1 - beta2) * g

    The decay follows the schedule's shape but not the rate's height: the same
    coefficient in AdamW's convention would be wd / lr.
    Source: llm-foundry's DecoupledLionW, which Biderman et al. 2024 trained with.

    Args:
        parameters: Tensors to train.
        lr: Peak learning rate; each group's `initial_lr`.
        betas: (beta1, beta2), the step's and the memory's.
        weight_decay: Share taken off every weight per step at the peak rate.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "initial_lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; gradients must be there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            memories = [self._memory(p) for p in parameters]
            beta1, beta2 = group["betas"]
            if group["weight_decay"]:
                share = group["weight_decay"] * group["lr"] / group["initial_lr"]
                torch._foreach_mul_(parameters, 1 - share)
            directions = torch._foreach_lerp(memories, gradients, 1 - beta1)
            torch._foreach_sign_(directions)
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])
            torch._foreach_lerp_(memories, gradients, 1 - beta2)
        return loss

    def _memory(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        memory: Tensor = state["exp_avg"]
        return memory


def _adamw(parameters: list[nn.Parameter], section: TrainSection, lr: float, decay: float) -> Any:
    return torch.optim.AdamW(
        parameters,
        lr=lr,
        betas=section.beta_values,
        eps=section.epsilon,
        weight_decay=decay,
        fused=True,
    )


def _lion(parameters: list[nn.Parameter], section: TrainSection, lr: float, decay: float) -> Any:
    return DecoupledLion(parameters, lr=lr, betas=section.beta_values, weight_decay=decay)


OPTIMISERS = {"adamw": _adamw, "lion": _lion}


def build_optimiser(
    parameters: list[nn.Parameter], section: TrainSection, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The recipe's optimiser over these parameters."""
    optimiser = OPTIMISERS[section.optimiser](parameters, section, learning_rate, weight_decay)
    assert isinstance(optimiser, torch.optim.Optimizer)
    return optimiser
