"""From encoded examples to the batch of every step, as a pure function of the seed.

The whole order is known before the first step, so a run continues at any step
without replaying, and a budget in tokens or epochs is a step count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laura.data.packing import Overlong, Row, batches, epoch_rows
from laura.data.templates import Encoded
from laura.errors import DataError
from laura.recipe import BudgetSection, TrainSection


@dataclass(frozen=True)
class BatchPlan:
    """The batch of every step, and the steps at which budgets are reached.

    Attributes:
        batches: Rows of each step, in order.
        points: Step count of each budget point, rising.
    """

    batches: list[list[Row]]
    points: list[int]


def plan_batches(
    encoded: Sequence[Encoded],
    train: TrainSection,
    budget: BudgetSection,
    *,
    overlong: Overlong,
    split_long: bool,
    seed: int,
) -> BatchPlan:
    """Pack epochs one after another until the largest budget is reached.

    Raises:
        DataError: there are no examples, or a budget is less than one step.
    """
    if not encoded:
        raise DataError("there are no training examples; check data.train and data.overlong")
    goals = budget.tokens or budget.epochs or []
    plan: list[list[Row]] = []
    ends: list[int] = []  # steps taken when each epoch is over
    tokens: list[int] = []  # tokens seen after each step

    def epoch() -> None:
        rows = epoch_rows(
            encoded,
            train.row_tokens,
            seed=seed,
            epoch=len(ends),
            overlong=overlong,
            split_long=split_long,
        )
        for batch in batches(rows, train.batch_tokens):
            plan.append(batch)
            tokens.append((tokens[-1] if tokens else 0) + sum(len(r.token_ids) for r in batch))
        ends.append(len(plan))

    if budget.tokens is not None:
        while not tokens or tokens[-1] < budget.tokens[-1]:
            epoch()
        points = [next(s for s, t in enumerate(tokens, 1) if t >= goal) for goal in budget.tokens]
    else:
        while len(ends) < goals[-1]:
            epoch()
        points = [_epoch_step(float(goal), ends) for goal in goals]
    if points[0] < 1 or len(set(points)) < len(points):
        raise DataError(
            f"budget points {list(goals)} fall on steps {points}; each needs at least one step "
            f"more than the one before (a step holds about {train.batch_tokens} tokens, an epoch "
            f"{ends[0]} steps): raise the budgets or lower train.batch_tokens"
        )
    return BatchPlan(plan[: points[-1]], points)


def _epoch_step(goal: float, ends: list[int]) -> int:
    whole = int(goal)
    done = ends[whole - 1] if whole else 0
    share = goal - whole
    return done if not share else done + round(share * (ends[whole] - done))
