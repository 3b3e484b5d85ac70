"""AdamW as torch has it, and Lion with the rule of the paper's library.

Adding one: a function here and a line in OPTIMISERS (and its name in recipe.py).

Weight decay is decoupled, by name of its rule, toward zero or toward the base:

    w <- w - share * (w - target),   before the optimiser's own step
    pytorch:   share = weight_decay * rate              (torch.optim.AdamW)
    composer:  share = weight_decay * rate / peak rate  (the paper's library)

The target is zero, or the weight the run began with: L2-SP, decoupled like the rest.
Source: Loshchilov and Hutter 2019, arXiv:1711.05101; Li et al. 2018, arXiv:1802.01483
(L2-SP); Biderman et al. 2024, arXiv:2405.09673, which trained with the second rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from laura.recipe.sections import TrainSection


@dataclass(frozen=True)
class Average:
    """How weights are averaged over steps; see `training/averages/`.

    Attributes:
        share: Of step t's weights in the average.
        lead: By how much of (weights - weights at the beginning) it is corrected then.
    """

    share: Callable[[int], float]
    lead: Callable[[int], float]


@dataclass(frozen=True)
class StepRule:
    """How an arm's parameters are stepped, beside what `train` says for every arm.

    Attributes:
        weight_decay: Coefficient of the decoupled decay; `train.weight_decay_rule` says of what.
        toward_base: Whether decay pulls to the weights the run begins with, not to zero.
        rate_ratios: Multiple of the run's rate, by parameter name, where it is not 1.
        undecayed: Names of parameters that do not decay.
        pull: Gradient of a penalty by a parameter of this name; None where it has none.
        pull_strength: Factor of that penalty.
        pace: Factor of the scheduled rate by the step's mean loss.
        average: What is kept instead of the last weights.
    """

    weight_decay: float = 0.0
    toward_base: bool = False
    rate_ratios: Mapping[str, float] = field(default_factory=dict)
    undecayed: Collection[str] = ()
    pull: Callable[[str, Tensor], Tensor | None] | None = None
    pull_strength: float = 0.0
    pace: Callable[[float], float] | None = None
    average: Average | None = None


STANDARD = StepRule()


class DecoupledLion(torch.optim.Optimizer):
    """Lion whose weight decay is decoupled from the learning rate.

        p <- p * (1 - wd * lr / lr_initial)
        p <- p - lr * sign(beta1 * m + (1 - beta1) * g)
        m <- beta2 * m + (1 - beta2) * g

    The decay follows the schedule's shape but not the rate's height: the same
    coefficient in AdamW's convention would be wd / lr.
    Source: llm-foundry's DecoupledLionW, which Biderman et al. 2024 trained with.

    Args:
        parameters: Tensors to train, or groups of them.
        lr: Peak learning rate; each group's `initial_lr`.
        betas: (beta1, beta2), the step's and the memory's.
        weight_decay: Share taken off every weight per step at the peak rate.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
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


def _adamw(groups: list[dict[str, Any]], section: TrainSection, lr: float) -> Any:
    betas, epsilon = section.beta_values, section.epsilon
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=epsilon, fused=True)


def _lion(groups: list[dict[str, Any]], section: TrainSection, lr: float) -> Any:
    return DecoupledLion(groups, lr=lr, betas=section.beta_values)


OPTIMISERS = {"adamw": _adamw, "lion": _lion}
OWN_DECAY = {"adamw": "pytorch", "lion": "composer"}


def build_optimiser(
    parameters: Mapping[str, nn.Parameter],
    section: TrainSection,
    learning_rate: float,
    rule: StepRule,
) -> torch.optim.Optimizer:
    """The recipe's optimiser over these parameters, which must be as the run begins with them.

    Each of its groups has a `rate_ratio`, its rate as a multiple of the run's.
    """
    own = section.decay_rule == OWN_DECAY[section.optimiser] and not rule.toward_base
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        ratio = rule.rate_ratios.get(name, 1.0)
        decay = 0.0 if name in rule.undecayed else rule.weight_decay
        rate = ratio * learning_rate
        # What the optimiser's own rule does not do is done before its steps, see `Decay`.
        fresh = {
            "params": [],
            "lr": rate,
            "initial_lr": rate,
            "rate_ratio": ratio,
            "weight_decay": decay if own else 0.0,
            "decay": 0.0 if own else decay,
        }
        groups.setdefault((ratio, decay), fresh)["params"].append(parameter)
    optimiser = OPTIMISERS[section.optimiser](list(groups.values()), section, learning_rate)
    assert isinstance(optimiser, torch.optim.Optimizer)
    if rule.weight_decay and not own:
        Decay(optimiser, section.decay_rule, toward_base=rule.toward_base)
    return optimiser


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


class Averaging:
    """Averages an optimiser's weights after each of its steps.

    The average, and the weights at the beginning where it is corrected by them, stand in the
    optimiser's state, so that they are saved with it.

    Args:
        optimiser: Whose weights are averaged.
        average: How.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, average: Average) -> None:
        self._optimiser, self._average = optimiser, average
        self._weights = [p for group in optimiser.param_groups for p in group["params"]]
        self._begun: list[Tensor] = []
        self._live: list[Tensor] = []
        optimiser.register_step_pre_hook(self._before_step)
        optimiser.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def put_in(self) -> None:
        """Put what is kept in place of the weights, until `take_out`."""
        self._live = [weight.clone() for weight in self._weights]
        lead = self._average.lead(self._steps)
        for weight, live in zip(self._weights, self._live, strict=True):
            state = self._optimiser.state[weight]
            weight.copy_(state["average"])
            if lead:
                weight.add_(live - state["begun"], alpha=lead)

    @torch.no_grad()
    def take_out(self) -> None:
        """Put the weights back, bit by bit."""
        torch._foreach_copy_(self._weights, self._live)
        self._live = []

    @property
    def _steps(self) -> int:
        return int(self._optimiser.state[self._weights[0]].get("averaged", 0))

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        # An optimiser takes a state that is not empty for its own.
        if not self._steps:
            self._begun = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        steps = self._steps + 1
        states = [self._optimiser.state[weight] for weight in self._weights]
        if steps == 1:
            for state, begun in zip(states, self._begun, strict=True):
                state["average"] = begun
                if self._average.lead(1):
                    state["begun"] = begun.clone()
            self._begun = []
        states[0]["averaged"] = torch.tensor(steps)
        averages = [state["average"] for state in states]
        torch._foreach_lerp_(averages, self._weights, self._average.share(steps))
