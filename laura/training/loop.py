"""The one loop. It sees batches, a schedule, and learners that take gradients and steps.

It never asks which method it runs, nor on how many devices: that is the learner's matter.
The loss of a step is the mean over its supervised tokens, whatever the number
of rows or passes they are spread over, so accumulation does not change it.

Several runs may go in lock-step on one model, see `cohort.py`; mostly it is one.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from laura.data.packing import Row
from laura.models.device import peak_memory_bytes
from laura.recipe.sections import TrainSection
from laura.results.errors import DivergenceError
from laura.results.progress import Bar
from laura.results.store import RunStore, content_hash, write_json
from laura.training.batches import BatchPlan
from laura.training.flops import TrainingWork, step_flops
from laura.training.learner import Learner, LossSum, labels_of
from laura.training.schedules import Leg, rate_factor

# Training is lost when the loss stays, for this many steps, above that of guessing
# and this many nats above where it began.
LOST_STEPS = 5
LOST_NATS = 1.0


class StoppedForNow(Exception):
    """Raised to have the state saved and the run left there."""


@dataclass(eq=False)
class Trainer:
    """One run in the making.

    Attributes:
        learner: What it trains, and how.
        work: What a pass through the model takes.
        section: The recipe's `train`.
        learning_rate: Peak rate.
        seed: With the step, decides every random draw (dropout).
        plan: Rows of each step of the run, and how many tokens they hold.
        run: Where metrics and states go.
        keep: Called with the step count at each budget point to keep the weights.
        lend: Puts this run's parameters into the model, where several runs take turns.
        validate: Mean validation loss in nats, for `validate_every`; or None.
        step: Steps taken.
        failure: Why it cannot go on; None while it can.
        updating: Whether its weights are between those of two steps.
        owed: The last step's row of metrics, while its validation is not yet measured.
    """

    learner: Learner
    work: TrainingWork
    section: TrainSection
    learning_rate: float
    seed: int
    plan: BatchPlan
    run: RunStore
    keep: Callable[[int], None]
    lend: Callable[[], None]
    validate: Callable[[LossSum], float] | None = None
    step: int = field(init=False, default=0)
    failure: str | None = field(init=False, default=None)
    updating: bool = field(init=False, default=False)
    owed: dict[str, Any] | None = field(init=False, default=None)
    _recent: list[float] = field(init=False, default_factory=list)
    _first: float | None = field(init=False, default=None)

    def tokens_of(self, legs: Iterable[Leg]) -> int:
        """Tokens that pass through the model in these legs."""
        tokens = self.plan.tokens
        return sum(tokens[leg.end] - tokens[leg.start] for leg in legs)

    def begin(self, leg: Leg, bar: Bar) -> None:
        """Bring parameters and optimiser to where the leg goes on."""
        folder = self.run.folder / "resume"
        self.step = leg.start
        if (folder / leg.name).is_dir():
            facts = self.learner.load(folder / leg.name)
            self.step, self.owed = int(facts["step"]), facts.get("owed")
        elif leg.origin is not None:
            self.learner.load(folder / leg.origin)
        bar.advance(self.plan.tokens[self.step] - self.plan.tokens[leg.start])
        known = self.step if self.owed is None else self.step - 1
        self.run.keep_metrics(lambda row: row["leg"] != leg.name or row["step"] <= known)
        rows = [*self.run.metrics(), *([self.owed] if self.owed else [])]
        self._first = rows[0]["loss"] if rows else None
        self._recent = [row["loss"] for row in rows if row["leg"] == leg.name]

    def save(self, leg: Leg) -> None:
        """Write the state it can go on from."""
        folder = self.run.folder / "resume" / leg.name
        facts = {"step": self.step, "leg": leg.name, "owed": self.owed}
        self.learner.save(folder, facts)

    def give_up(self, error: DivergenceError) -> None:
        """Record that this run has diverged."""
        self.failure = str(error)
        self.learner.optimiser.zero_grad(set_to_none=True)
        write_json(self.run.folder / "failed.json", {"kind": "diverged", "reason": self.failure})

    def update(
        self, leg: Leg, batch: list[Row], loss_sum: float, seconds: float, runs: int
    ) -> float:
        """Take a step: change the parameters by their gradients, which `record` then writes down.

        Args:
            leg: Where the run is.
            batch: Rows of the step.
            loss_sum: Nats of their supervised tokens.
            seconds: What the gradients took.
            runs: How many take this step together.

        Returns:
            The mean loss in nats.

        Raises:
            DivergenceError: the loss or a gradient stopped being finite, or the
                model became worse than guessing.
        """
        started, step = time.perf_counter(), self.step
        rate = self.learning_rate * rate_factor(self.section, leg, step)
        norm = self.learner.clip()
        loss_nats = loss_sum / labels_of(batch)
        if self.learner.rule.pace:
            rate *= self.learner.rule.pace(loss_nats)
        self._check(loss_nats, norm, step)
        self.updating = True
        self.learner.step(rate)
        seconds += time.perf_counter() - started
        tokens = sum(len(row.token_ids) for row in batch)
        self.owed = {
            "leg": leg.name,
            "step": step + 1,
            "loss": loss_nats,
            "gradient_norm": norm,
            "learning_rate": rate,
            "tokens": self.plan.tokens[step + 1],
            "supervised_tokens": self.plan.supervised[step + 1],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops": step_flops(self.work, batch),
            "peak_memory_bytes": peak_memory_bytes(self.learner.device),
            **self.learner.facts,
        }
        if runs > 1:
            # Its time is a share of the cohort's, and the memory is that of all of them.
            self.owed["cohort"] = runs
        self.step += 1
        self.updating = False
        return loss_nats

    def record(self) -> None:
        """Write down the last step, with its validation where it is due.

        Whoever is interrupted here keeps the step; what is owed is measured when the run goes on.
        """
        if self.owed is None:
            return
        every = self.section.validate_every
        if self.validate is not None and every and self.step % every == 0:
            self.lend()
            with self.learner.averaged():
                self.owed["validation_loss"] = self.validate(self.learner.loss_sum)
            self.learner.model.train()
        self.run.append_metrics(self.owed)
        self.owed = None

    def _check(self, loss: float, norm: float, step: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergenceError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}; "
                f"the learning rate {self.learning_rate:g} is too high for this arm"
            )
        self._first = loss if self._first is None else self._first
        self._recent = [*self._recent[-LOST_STEPS + 1 :], loss]
        guessing = math.log(self.learner.model.config.vocab_size)
        # A random model may start above guessing; it is lost only if it gets worse still.
        limit = max(guessing, self._first + LOST_NATS)
        if len(self._recent) == LOST_STEPS and min(self._recent) > limit:
            raise DivergenceError(
                f"step {step + 1}: loss {loss:.2f} nats stays above that of guessing among all "
                f"tokens ({guessing:.2f}); the learning rate {self.learning_rate:g} is too high"
            )


# Takes the gradients of a batch for some runs that stand at the same step, and yields each run
# when its own are there, with the sum of its losses in nats and the seconds they took. What is
# given third is done while a device is still at work on them.
Meanwhile = Callable[[], object]
Gradients = Callable[
    [Sequence[Trainer], list[Row], Meanwhile], Iterator[tuple[Trainer, float, float]]
]


def run_leg(
    trainers: Sequence[Trainer],
    gradients: Gradients,
    leg: Leg,
    bar: Bar,
    halt: Callable[[], bool] = lambda: False,
) -> None:
    """Take the steps of one leg with these runs, each going on from its last state.

    Those that have taken fewest steps go first, so that runs stopped at different steps
    come together again. One that diverges drops out and has a `failure`.

    Args:
        trainers: Runs on one model and one plan.
        gradients: How their gradients are taken.
        leg: The leg.
        bar: Advanced by the tokens of each run.
        halt: Asked after each step; all stop there for now when it says so.

    Raises:
        StoppedForNow: they did, or `keep` asked for it.
    """
    for trainer in trainers:
        trainer.begin(leg, bar)
        # Ctrl-C may have come between the last step and its validation, or keeping its weights.
        trainer.record()
        if trainer.step in leg.points and not trainer.run.checkpoint(trainer.step).is_dir():
            trainer.lend()
            trainer.keep(trainer.step)
    section, model = trainers[0].section, trainers[0].learner.model
    # Remembers the rows made last, which are those of the step to come.
    rows_of = functools.lru_cache(maxsize=1)(trainers[0].plan.batches.__getitem__)
    saved = time.monotonic()
    model.train()
    going = list(trainers)
    try:
        while left := [trainer for trainer in going if trainer.step < leg.end]:
            step = min(trainer.step for trainer in left)
            _take_step([t for t in left if t.step == step], gradients, leg, rows_of, bar)
            going = [trainer for trainer in going if trainer.failure is None]
            if halt():
                raise StoppedForNow
            due = time.monotonic() - saved >= 60 * section.checkpoint_minutes
            if due and step + 1 < leg.end:
                for trainer in going:
                    trainer.save(leg)
                saved = time.monotonic()
    except (KeyboardInterrupt, StoppedForNow):
        for trainer in going:
            # Between two updates the weights are those of a step; within one they are not.
            if trainer.failure is None and not trainer.updating:
                trainer.save(leg)
        model.eval()
        raise
    for trainer in going:
        trainer.save(leg)
    model.eval()


def _take_step(
    trainers: Sequence[Trainer],
    gradients: Gradients,
    leg: Leg,
    rows_of: Callable[[int], list[Row]],
    bar: Bar,
) -> None:
    first, started = trainers[0], time.perf_counter()
    step, following = first.step, min(first.step + 1, leg.end - 1)
    batch = first.learner.taken(rows_of(step), step_seed(first.seed, step))
    share = (time.perf_counter() - started) / len(trainers)
    losses: list[float] = []
    for trainer, loss_sum, seconds in gradients(trainers, batch, lambda: rows_of(following)):
        try:
            loss = trainer.update(leg, batch, loss_sum, seconds + share, len(trainers))
        except DivergenceError as error:
            trainer.give_up(error)
            continue
        trainer.record()
        bar.advance(trainer.plan.tokens[step + 1] - trainer.plan.tokens[step])
        losses.append(loss)
        bar.note(_loss_words(losses))
        if trainer.step in leg.points:
            trainer.lend()
            trainer.keep(trainer.step)


def _loss_words(losses: list[float]) -> str:
    low, high = min(losses), max(losses)
    return f"loss {high:.3f}" if len(losses) == 1 else f"losses {low:.3f} to {high:.3f}"


def in_turn(
    trainers: Sequence[Trainer], batch: list[Row], meanwhile: Meanwhile
) -> Iterator[tuple[Trainer, float, float]]:
    """Gradients of one run after another; each computes exactly what it would alone."""
    for trainer in trainers:
        started = time.perf_counter()
        trainer.lend()
        torch.manual_seed(step_seed(trainer.seed, trainer.step))
        total = trainer.learner.gradients(batch, labels_of(batch))
        meanwhile()
        loss_sum = float(total)  # waits for the device, which belongs to the time
        yield trainer, loss_sum, time.perf_counter() - started


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's random draws, a pure function of run seed and step."""
    return int(content_hash([seed, step])[:15], 16)
