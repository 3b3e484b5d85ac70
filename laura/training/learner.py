"""What a run trains and the optimiser that changes it, on one device.

`sharded.Shards` is the same over several devices; the loop does not ask which it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laura.data.packing import IGNORED, Row
from laura.models.attention import Documents
from laura.models.device import autocast, copy_to, resolve_precision
from laura.models.losses import CROSS_ENTROPY, Objective, Tokens, TokenWeights, packed_loss_sum
from laura.recipe.sections import TrainSection
from laura.training.checkpoints import read_state, restore, state_tensors, write_state
from laura.training.optimisers import Averaging, StepRule, build_optimiser

LossSum = Callable[[Row], float]


class Learner:
    """The trained parameters of one run, and their optimiser.

    Args:
        model: Causal language model; what requires a gradient now is trained.
        section: The recipe's `train`.
        learning_rate: Peak rate.
        rule: How the parameters are stepped.
        objective: What the gradients follow.

    Attributes:
        parameters: What is trained, by name.
        optimiser: Over those parameters.
        device: Where they are.
        dtype: Arithmetic of a pass.
        facts: What is told of a step besides.
    """

    def __init__(
        self,
        model: Any,
        section: TrainSection,
        learning_rate: float,
        rule: StepRule,
        objective: Objective = CROSS_ENTROPY,
    ) -> None:
        self.model, self.section, self.rule = model, section, rule
        self.parameters = self._trained()
        held = model.state_dict(keep_vars=True)
        self._buffers = {n: t for n, t in held.items() if not isinstance(t, nn.Parameter)}
        self.optimiser = build_optimiser(self.parameters, section, learning_rate, rule)
        self._average = Averaging(self.optimiser, rule.average) if rule.average else None
        self.device = next(iter(self.parameters.values())).device
        self.dtype = resolve_precision(section.precision, self.device)
        self._mean: _MeanWeight | None = None
        if objective.normalised and objective.token_weights:
            self._mean = _MeanWeight(objective.token_weights, self.device)
            objective = replace(objective, token_weights=self._mean)
        self.objective = objective
        self.facts: dict[str, float] = {}

    def taken(self, batch: list[Row], seed: int) -> list[Row]:
        """The rows that a step learns where these are due: themselves.

        Args:
            batch: Rows of the plan.
            seed: Of the step.
        """
        return batch

    def gradients(self, batch: list[Row], labels: int) -> Tensor:
        """Take the gradients of a step's mean loss, without waiting until they are there.

        Args:
            batch: Rows of the step.
            labels: How many of their tokens are learnt.

        Returns:
            The sum of the losses in nats.
        """
        total = torch.zeros((), device=self.device)
        for rows in passes(batch, self.section):
            total += self._learn(rows, labels)
        return total

    def clip(self) -> float:
        """Make the gradients whole, and scale them down to `train.clip`; returns their norm before.

        What is not a sum over passes comes in here: the mean of normalised token weights, and a
        penalty on parameters.
        """
        trained = list(self.parameters.values())
        if self._mean is not None:
            mean = self._mean.taken(self._sum)
            torch._foreach_div_([p.grad for p in trained if p.grad is not None], mean)
        if self.rule.pull is not None:
            for name, parameter in self.parameters.items():
                slope = self.rule.pull(name, parameter.detach())
                if slope is not None and parameter.grad is not None:
                    parameter.grad.add_(slope, alpha=self.rule.pull_strength)
        total = self._norm([p.grad for p in trained if p.grad is not None])
        norm, limit = float(total), self.section.clip
        # torch's clip_grad_norm_ multiplies by one where nothing is to be clipped.
        if limit is not None and norm > limit:
            nn.utils.clip_grads_with_norm_(trained, limit, total)
        return norm

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, which are gone then."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate_ratio"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss_sum(self, row: Row) -> float:
        """Nats of the labels of a row, as the model now is."""
        inputs, labels = model_inputs([row], self.device)
        with autocast(self.device, self.dtype):
            return float(self._loss(inputs, labels))

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write what it can go on from, with facts to find again."""
        write_state(folder, state_tensors(self._state, self.optimiser), facts)

    def load(self, folder: Path) -> dict[str, Any]:
        """Be as `save` was called, on whatever number of devices; returns the facts.

        Raises:
            CheckpointError: damaged, or made by another run.
        """
        facts, tensors = read_state(folder, self._state)
        restore(tensors, self._state, self.optimiser)
        return facts

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the weights are those that are kept, see `StepRule.average`."""
        if self._average is None:
            yield
            return
        self._put_in()
        try:
            yield
        finally:
            self._take_out()

    def whole(self) -> AbstractContextManager[object]:
        """Within the block the model holds whole weights, to be written."""
        return nullcontext()

    @property
    def _state(self) -> dict[str, Tensor]:
        """What a run changes or was begun with."""
        return {**self.parameters, **self._buffers}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _learn(self, rows: list[Row], labels: float) -> Tensor:
        """Add to the gradients those of one pass; the sum of its losses."""
        inputs, targets = model_inputs(rows, self.device)
        with autocast(self.device, self.dtype):
            loss = self._loss(inputs, targets)
        (loss / labels).backward()
        return loss.detach()

    def _loss(self, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        return packed_loss_sum(self.model, inputs, labels, self.dtype, self.objective)

    def _put_in(self) -> None:
        assert self._average is not None
        self._average.put_in()

    def _take_out(self) -> None:
        assert self._average is not None
        self._average.take_out()

    def _sum(self, tensor: Tensor) -> Tensor:
        """Of all devices."""
        return tensor

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients)


class _MeanWeight:
    """Token weights that keep in mind what they were in the mean since it was last asked for."""

    def __init__(self, weights: TokenWeights, device: torch.device) -> None:
        self._weights = weights
        self._sums = torch.zeros(2, device=device)  # of the weights, and how many

    def __call__(self, tokens: Tokens) -> Tensor:
        factors = self._weights(tokens)
        self._sums += torch.stack([factors.sum(), torch.ones_like(factors).sum()])
        return factors

    def taken(self, over_devices: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean, above 0."""
        total, count = over_devices(self._sums)
        self._sums = torch.zeros_like(self._sums)
        mean: Tensor = total / count
        return mean.clamp_min(torch.finfo(mean.dtype).tiny)


def labels_of(batch: list[Row]) -> int:
    """How many tokens of a step are learnt."""
    return sum(len(row.labels) - row.labels.count(IGNORED) for row in batch)


def passes(batch: list[Row], section: TrainSection) -> Iterator[list[Row]]:
    """The rows of a step that go through the model together."""
    for start in range(0, len(batch), section.rows_per_pass):
        yield batch[start : start + section.rows_per_pass]


def model_inputs(rows: list[Row], device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Rows as one longer packed row: the decoder's keyword arguments, and the labels.

    The labels stay on the processor, see `losses.packed_loss_sums`.
    """
    ids = [token for row in rows for token in row.token_ids]
    positions = [position for row in rows for position in row.positions]
    lengths = [length for row in rows for length in row.lengths]
    labels = [label for row in rows for label in row.labels]
    inputs = {
        "input_ids": copy_to(torch.tensor([ids]), device),
        "position_ids": copy_to(torch.tensor([positions]), device),
        "documents": Documents(lengths),
    }
    return inputs, torch.tensor(labels)
