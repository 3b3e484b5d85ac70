"""The one loop. It sees a model, batches, an optimiser and a schedule.

It never asks which method it runs: what is trained is what requires a gradient.
The loss of a step is the mean over its supervised tokens, whatever the number
of rows or passes they are spread over, so accumulation does not change it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from laura.data.packing import Row
from laura.errors import DivergenceError
from laura.models.attention import Documents
from laura.models.device import autocast, peak_memory_bytes, resolve_precision
from laura.models.losses import packed_loss_sum
from laura.progress import Bar
from laura.recipe import TrainSection
from laura.store import RunStore, content_hash
from laura.train.batches import BatchPlan
from laura.train.checkpoints import load_state, save_state
from laura.train.flops import count_work, step_flops
from laura.train.schedules import Leg, rate_factor
from laura.train.work import Work

# Training is lost when the loss stays, for this many steps, above that of guessing
# and this many nats above where it began.
LOST_STEPS = 5
LOST_NATS = 1.0


@dataclass
class Trainer:
    """One run in the making.

    Attributes:
        model: Causal language model; parameters that require a gradient are trained.
        optimiser: Over those parameters.
        section: The recipe's `train`.
        learning_rate: Peak rate.
        seed: With the step, decides every random draw (dropout).
        plan: Rows of each step of the run, and how many tokens they hold.
        run: Where metrics and states go.
        keep: Called with the step count at each budget point to keep the weights.
        validate: Mean validation loss in nats, for `validate_every`; or None.
    """

    model: Any
    optimiser: torch.optim.Optimizer
    section: TrainSection
    learning_rate: float
    seed: int
    plan: BatchPlan
    run: RunStore
    keep: Callable[[int], None]
    validate: Callable[[], float] | None = None
    _parameters: dict[str, nn.Parameter] = field(init=False)
    _work: Work = field(init=False)
    _recent: list[float] = field(init=False, default_factory=list)
    _first: float | None = field(init=False, default=None)
    _updating: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        named = self.model.named_parameters()
        self._parameters = {name: p for name, p in named if p.requires_grad}
        self._device = next(iter(self._parameters.values())).device
        self._dtype = resolve_precision(self.section.precision, self._device)
        self._work = count_work(self.model)

    def tokens_of(self, legs: Iterable[Leg]) -> int:
        """Tokens that pass through the model in these legs."""
        tokens = self.plan.tokens
        return sum(tokens[leg.end] - tokens[leg.start] for leg in legs)

    def run_leg(self, leg: Leg, bar: Bar) -> None:
        """Take the steps of one leg, continuing from its last state if there is one.

        Raises:
            DivergenceError: the loss or a gradient stopped being finite, or the
                model became worse than guessing.
        """
        step = self._begin(leg, bar)
        saved = time.monotonic()
        self.model.train()
        try:
            while step < leg.end:
                metrics = self._step(leg, step)
                step += 1
                self._updating = False
                self.run.append_metrics(metrics)
                bar.advance(self.plan.tokens[step] - self.plan.tokens[step - 1])
                bar.note(f"loss {metrics['loss']:.3f}")
                if step in leg.points:
                    self.keep(step)
                due = time.monotonic() - saved >= 60 * self.section.checkpoint_minutes
                if due and step < leg.end:
                    self._save(leg, step)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            # Between two updates the weights are those of a step; within one they are not.
            if not self._updating:
                self._save(leg, step)
            raise
        self._save(leg, step)
        self.model.eval()

    def _begin(self, leg: Leg, bar: Bar) -> int:
        """Bring parameters and optimiser to where the leg goes on; returns the step."""
        folder = self.run.folder / "resume"
        step = leg.start
        if (folder / leg.name).is_dir():
            facts = load_state(folder / leg.name, self._parameters, self.optimiser)
            step = int(facts["step"])
        elif leg.origin is not None:
            load_state(folder / leg.origin, self._parameters, self.optimiser)
        bar.advance(self.plan.tokens[step] - self.plan.tokens[leg.start])
        self.run.keep_metrics(lambda row: row["leg"] != leg.name or row["step"] <= step)
        rows = self.run.metrics()
        self._first = rows[0]["loss"] if rows else None
        self._recent = [row["loss"] for row in rows if row["leg"] == leg.name]
        return step

    def _save(self, leg: Leg, step: int) -> None:
        folder = self.run.folder / "resume" / leg.name
        save_state(folder, self._parameters, self.optimiser, {"step": step, "leg": leg.name})

    def _step(self, leg: Leg, step: int) -> dict[str, Any]:
        """One optimiser step; returns its row of metrics."""
        started = time.perf_counter()
        rate = self.learning_rate * rate_factor(self.section, leg, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.seed, step))
        batch = self.plan.batches[step]
        labels = self.plan.supervised[step + 1] - self.plan.supervised[step]
        total = torch.zeros((), device=self._device)
        for start in range(0, len(batch), self.section.rows_per_pass):
            rows = batch[start : start + self.section.rows_per_pass]
            loss = self._pass_loss(rows)
            (loss / labels).backward()
            total += loss.detach()
        norm = self._clip()
        loss_nats = float(total) / labels
        self._check(loss_nats, norm, step)
        self._updating = True
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        tokens = self.plan.tokens[step + 1] - self.plan.tokens[step]
        metrics = {
            "leg": leg.name,
            "step": step + 1,
            "loss": loss_nats,
            "gradient_norm": norm,
            "learning_rate": rate,
            "tokens": self.plan.tokens[step + 1],
            "supervised_tokens": self.plan.supervised[step + 1],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops": step_flops(self._work, batch),
            "peak_memory_bytes": peak_memory_bytes(self._device),
        }
        every = self.section.validate_every
        if self.validate is not None and every and (step + 1) % every == 0:
            metrics["validation_loss"] = self.validate()
            self.model.train()
        return metrics

    def _pass_loss(self, rows: list[Row]) -> Tensor:
        inputs, labels = model_inputs(rows, self._device)
        with autocast(self._device, self._dtype):
            return packed_loss_sum(self.model, inputs, labels, self._dtype)

    def _clip(self) -> float:
        """Scale the gradients down to `train.clip` if they are longer; returns their norm."""
        trained = list(self._parameters.values())
        gradients = [p.grad for p in trained if p.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm, limit = float(total), self.section.clip
        # torch's clip_grad_norm_ multiplies by one where nothing is to be clipped.
        if limit is not None and norm > limit:
            nn.utils.clip_grads_with_norm_(trained, limit, total)
        return norm

    def _check(self, loss: float, norm: float, step: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergenceError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}; "
                f"the learning rate {self.learning_rate:g} is too high for this arm"
            )
        self._first = loss if self._first is None else self._first
        self._recent = [*self._recent[-LOST_STEPS + 1 :], loss]
        guessing = math.log(self.model.config.vocab_size)
        # A random model may start above guessing; it is lost only if it gets worse still.
        limit = max(guessing, self._first + LOST_NATS)
        if len(self._recent) == LOST_STEPS and min(self._recent) > limit:
            raise DivergenceError(
                f"step {step + 1}: loss {loss:.2f} nats stays above that of guessing among all "
                f"tokens ({guessing:.2f}); the learning rate {self.learning_rate:g} is too high"
            )


def model_inputs(rows: list[Row], device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Rows as one longer packed row: the decoder's keyword arguments, and the labels."""
    ids = [token for row in rows for token in row.token_ids]
    positions = [position for row in rows for position in row.positions]
    lengths = [length for row in rows for length in row.lengths]
    labels = [label for row in rows for label in row.labels]
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        "documents": Documents(lengths),
    }
    return inputs, torch.tensor(labels, device=device)


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's random draws, a pure function of run seed and step."""
    return int(content_hash([seed, step])[:15], 16)
