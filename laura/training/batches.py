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

from laura.data.mixing import TARGET, Dealt, Mixer, Pool, Replay, refuse_repeats
from laura.data.packing import IGNORED, Fitted, Row, epoch_rows, step_ends
from laura.data.templates import Encoded
from laura.recipe.sections import BudgetSection, TrainSection
from laura.results.errors import DataError


@dataclass(frozen=True)
class BatchPlan:
    """The batch of every step, and the steps at which budgets are reached.

    Attributes:
        batches: Rows of each step, in order.
        points: Step count of each budget point, rising.
        tokens: tokens[s] have passed through the model after s steps; tokens[0] is 0.
        supervised: The same count of the tokens that were learnt.
        mix: At each point, what was read of the target and then of every replay
            source; empty where nothing is replayed.
        hot: Whether points before the last are snapshots of the longest run.

    Raises:
        DataError: no token of a step is learnt.
    """

    batches: Sequence[list[Row]]
    points: list[int]
    tokens: Sequence[int]
    supervised: Sequence[int]
    mix: Sequence[Sequence[Dealt]] = ()
    hot: bool = False

    def __post_init__(self) -> None:
        # `fit` drops documents without anything to learn, but rows may come from elsewhere.
        for step, (before, after) in enumerate(pairwise(self.supervised), start=1):
            if before == after:
                raise DataError(
                    f"step {step} holds no token to learn, and a loss is the mean over at least "
                    "one; leave its rows out, or put them into a step with others"
                )

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
    replay: Replay | None = None,
) -> BatchPlan:
    """Arrange epochs one after another until the largest budget is reached.

    Budgets in tokens count the target and what is replayed; an epoch is a pass over the
    target, between whose rows the replay falls.

    Args:
        encoded: The examples; they may lie in a file.
        fitted: Their documents, fitted to `train.row_tokens`.
        train: The recipe's `train`.
        budget: Where it is measured.
        seed: Decides the order.
        replay: What is replayed; None for nothing.

    Raises:
        DataError: a budget is less than one step, or more replay is needed than there is
            and it must not be repeated.
    """
    target = Pool("target", encoded, fitted)
    mixer = Mixer(target, replay, train.row_tokens, seed) if replay else None
    plan = _Planned([target, *(replay.pools if replay else ())], mixer)
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
    mix = [plan.dealt(step) for step in points] if replay else []
    if replay:
        refuse_repeats(replay, mix[-1][1:])
    hot = budget.points == "hot"
    return BatchPlan(plan, points, plan.tokens, plan.supervised, mix, hot)


class _Planned(Sequence[list[Row]]):
    """The rows of each step, made when they are asked for.

    Attributes:
        tokens: Tokens after each number of steps, from 0.
        supervised: Of these, how many are learnt.
    """

    def __init__(self, pools: Sequence[Pool], mixer: Mixer | None) -> None:
        self._pools, self._mixer = pools, mixer
        self._members = array("q")  # documents of a row's pool, row after row
        self._row_ends = array("q", [0])  # in documents
        self._row_pools = array("H")
        self._step_ends = array("q", [0])  # in rows
        self.tokens = array("q", [0])
        self.supervised = array("q", [0])

    def __len__(self) -> int:
        return len(self._step_ends) - 1

    def __getitem__(self, step: int) -> list[Row]:  # type: ignore[override]
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        numbers = range(self._step_ends[step], self._step_ends[step + 1])
        return [self._pools[self._row_pools[row]].row(self._documents(row)) for row in numbers]

    def add_epoch(self, train: TrainSection, seed: int, epoch: int) -> None:
        """Append the steps of one more epoch; steps never hold rows of two."""
        lengths = self._pools[TARGET].fitted.lengths
        rows = epoch_rows(lengths, train.row_tokens, seed=seed, epoch=epoch)
        first_row = len(self._row_pools)
        mixed = self._mixer.mixed(rows) if self._mixer else ((TARGET, row) for row in rows)
        for pool, documents in mixed:
            self._members.extend(documents)
            self._row_ends.append(len(self._members))
            self._row_pools.append(pool)
        sizes, learnt = array("q"), array("q")
        for row in range(first_row, len(self._row_pools)):
            size, supervised = self._counts(row)
            sizes.append(size)
            learnt.append(supervised)
        done = 0
        for end in step_ends(sizes, train.batch_tokens):
            self._step_ends.append(first_row + end)
            self.tokens.append(self.tokens[-1] + sum(sizes[done:end]))
            self.supervised.append(self.supervised[-1] + sum(learnt[done:end]))
            done = end

    def dealt(self, steps: int) -> list[Dealt]:
        """What was read of every pool after so many steps."""
        counts = [[0, 0, 0] for _ in self._pools]
        for row in range(self._step_ends[steps]):
            size, supervised = self._counts(row)
            documents = self._row_ends[row + 1] - self._row_ends[row]
            own = counts[self._row_pools[row]]
            for place, more in enumerate((size, supervised, documents)):
                own[place] += more
        return [
            Dealt(pool.name, tokens, learnt, documents, len(pool.fitted.lengths))
            for pool, (tokens, learnt, documents) in zip(self._pools, counts, strict=True)
        ]

    def _documents(self, row: int) -> array[int]:
        return self._members[self._row_ends[row] : self._row_ends[row + 1]]

    def _counts(self, row: int) -> tuple[int, int]:
        """Tokens of a row, and those of them that are learnt."""
        fitted, documents = self._pools[self._row_pools[row]].fitted, self._documents(row)
        return sum(fitted.lengths[d] for d in documents), sum(fitted.labels[d] for d in documents)

    def cut(self, steps: int) -> None:
        """Forget what comes after this many steps."""
        for counts in (self._step_ends, self.tokens, self.supervised):
            del counts[steps + 1 :]


def _epoch_step(goal: float, ends: list[int]) -> int:
    whole = int(goal)
    done = ends[whole - 1] if whole else 0
    share = goal - whole
    return done if not share else done + round(share * (ends[whole] - done))
