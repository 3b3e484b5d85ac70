"""From encoded examples to the batch of every step, as a pure function of the seed.

The whole order is known before the first step, so a run continues at any step
without replaying, and a budget in tokens or epochs is a step count. The plan
holds numbers only; the rows of a step are made when the step is taken.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from laura.data.packing import IGNORED, Fitted, Row, epoch_rows, step_ends
from laura.data.templates import Encoded
from laura.errors import DataError
from laura.recipe import BudgetSection, TrainSection


@dataclass(frozen=True)
class BatchPlan:
    """The batch of every step, and the steps at which budgets are reached.

    Attributes:
        batches: Rows of each step, in order.
        points: Step count of each budget point, rising.
        tokens: tokens[s] have passed through the model after s steps; tokens[0] is 0.
        supervised: The same count of the tokens that were learnt.
    """

    batches: Sequence[list[Row]]
    points: list[int]
    tokens: Sequence[int]
    supervised: Sequence[int]

    @classmethod
    def of(cls, batches: Sequence[list[Row]], points: list[int]) -> BatchPlan:
        """A plan of batches that are already there."""
        tokens, supervised = [0], [0]
        for batch in batches:
            labels = [label for row in batch for label in row.labels]
            tokens.append(tokens[-1] + len(labels))
            supervised.append(supervised[-1] + sum(label != IGNORED for label in labels))
        return cls(batches, points, tokens, supervised)


def plan_batches(
    encoded: Sequence[Encoded],
    fitted: Fitted,
    train: TrainSection,
    budget: BudgetSection,
    seed: int,
) -> BatchPlan:
    """Arrange epochs one after another until the largest budget is reached.

    Args:
        encoded: The examples; they may lie in a file.
        fitted: Their documents, fitted to `train.row_tokens`.
        train: The recipe's `train`.
        budget: Where it is measured.
        seed: Decides the order.

    Raises:
        DataError: a budget is less than one step.
    """
    plan = _Planned(encoded, fitted)
    goals = budget.tokens or budget.epochs or []
    ends: list[int] = []  # steps taken when each epoch is over
    while not (plan.tokens[-1] >= goals[-1] if budget.tokens else len(ends) >= goals[-1]):
        plan.add_epoch(train, seed, len(ends))
        ends.append(len(plan))
    if budget.tokens is not None:
        points = [next(s for s, t in enumerate(plan.tokens) if t >= goal) for goal in goals]
    else:
        points = [_epoch_step(float(goal), ends) for goal in goals]
    if points[0] < 1 or len(set(points)) < len(points):
        raise DataError(
            f"budget points {list(goals)} fall on steps {points}; each needs at least one step "
            f"more than the one before (a step holds about {train.batch_tokens} tokens, an epoch "
            f"{ends[0]} steps): raise the budgets or lower train.batch_tokens"
        )
    plan.cut(points[-1])
    return BatchPlan(plan, points, plan.tokens, plan.supervised)


class _Planned(Sequence[list[Row]]):
    """The rows of each step, made when they are asked for.

    Attributes:
        tokens: Tokens after each number of steps, from 0.
        supervised: Of these, how many are learnt.
    """

    def __init__(self, encoded: Sequence[Encoded], fitted: Fitted) -> None:
        self._encoded, self._fitted = encoded, fitted
        self._members = array("q")  # documents, row after row
        self._row_ends = array("q", [0])  # in documents
        self._step_ends = array("q", [0])  # in rows
        self.tokens = array("q", [0])
        self.supervised = array("q", [0])

    def __len__(self) -> int:
        return len(self._step_ends) - 1

    def __getitem__(self, step: int) -> list[Row]:  # type: ignore[override]
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        first, last = self._step_ends[step], self._step_ends[step + 1]
        places = pairwise(self._row_ends[first : last + 1])
        rows = (self._members[start:stop] for start, stop in places)
        return [self._fitted.row(self._encoded, documents) for documents in rows]

    def add_epoch(self, train: TrainSection, seed: int, epoch: int) -> None:
        """Append the steps of one more epoch; steps never hold rows of two."""
        fitted = self._fitted
        rows = epoch_rows(fitted.lengths, train.row_tokens, seed=seed, epoch=epoch)
        shift, first_row = len(self._members), len(self._row_ends) - 1
        self._members.extend(rows.members)
        self._row_ends.extend(shift + end for end in rows.ends[1:])
        sizes = array("q", (sum(fitted.lengths[d] for d in row) for row in rows))
        learnt = array("q", (sum(fitted.labels[d] for d in row) for row in rows))
        done = 0
        for end in step_ends(sizes, train.batch_tokens):
            self._step_ends.append(first_row + end)
            self.tokens.append(self.tokens[-1] + sum(sizes[done:end]))
            self.supervised.append(self.supervised[-1] + sum(learnt[done:end]))
            done = end

    def cut(self, steps: int) -> None:
        """Forget what comes after this many steps."""
        for counts in (self._step_ends, self.tokens, self.supervised):
            del counts[steps + 1 :]


def _epoch_step(goal: float, ends: list[int]) -> int:
    whole = int(goal)
    done = ends[whole - 1] if whole else 0
    share = goal - whole
    return done if not share else done + round(share * (ends[whole] - done))
