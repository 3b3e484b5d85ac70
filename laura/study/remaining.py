"""How long a study still takes, from what its runs took so far. No torch.

A run's time is that of its tokens and of its measurements. Both are taken from the latest runs of
its arm; an arm that has not begun is taken to be like the others, and before anything of a run is
measured, measuring takes as long as it took of the base. The runs are then dealt to as many
workers as there are now, in their order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LATEST = 8  # runs of an arm that tell its pace: a machine may have more or less to do than before
# What a run takes beside its steps and measurements, and how far off the whole may be: of finished
# studies that `scripts/time_left.py` replays, 52 of 66 looks from a tenth on were within 1.3.
OVERHEAD, SPREAD = 1.03, 1.3


@dataclass(frozen=True)
class RunPace:
    """One run: what it is to do, and what it did in which time.

    Attributes:
        arm: Name of the arm.
        tokens: To be trained on, cooldowns that branch off included.
        points: Budget points to be measured.
        trained: Of `tokens`, how many were.
        train_seconds: What these took.
        measured: Of `points`, how many were.
        measure_seconds: What these took.
        live: Whether somebody is at it now.
        over: Whether nothing more of it comes: it has ended, or is to be skipped.
    """

    arm: str
    tokens: float
    points: int
    trained: float = 0.0
    train_seconds: float = 0.0
    measured: int = 0
    measure_seconds: float = 0.0
    live: bool = False
    over: bool = False

    @property
    def share(self) -> float:
        """Share of its tokens that it was trained on; of its points where none is trained."""
        done, whole = (self.trained, self.tokens) if self.tokens else (self.measured, self.points)
        return 1.0 if self.over else min(1.0, done / whole) if whole else 0.0


def costs(runs: Sequence[RunPace], base_seconds: float) -> Callable[[RunPace], float | None]:
    """What tells how many seconds a run still takes by itself; None before that is known.

    Args:
        runs: In the order in which they began, first to last.
        base_seconds: What measuring the base took.
    """

    def pace(arm: str | None, seconds: str, amount: str) -> float | None:
        own = [r for r in runs if arm in (None, r.arm) and getattr(r, amount)][-LATEST:]
        done = sum(getattr(run, amount) for run in own)
        return sum(getattr(run, seconds) for run in own) / done if done else None

    def cost(run: RunPace) -> float | None:
        if run.over:
            return 0.0
        token, point = (
            pace(run.arm, *what) or pace(None, *what)
            for what in (("train_seconds", "trained"), ("measure_seconds", "measured"))
        )
        tokens = max(0.0, run.tokens - run.trained)
        if token is None and tokens:
            return None
        points = run.points - run.measured
        return OVERHEAD * (tokens * (token or 0) + points * (point or base_seconds))

    return cost


def seconds_left(runs: Sequence[RunPace], base_seconds: float, workers: int) -> float | None:
    """How long all of these still take; None before anything tells.

    Args:
        runs: In the order in which they begin, first to last.
        base_seconds: What measuring the base took.
        workers: How many go on side by side.
    """
    cost = costs(runs, base_seconds)
    ends: list[float] = []
    for run in sorted(runs, key=lambda one: not one.live):
        seconds = cost(run)
        if seconds is None:
            return None
        begun = heapq.heappop(ends) if len(ends) >= max(1, workers) else 0.0
        heapq.heappush(ends, begun + seconds)
    return max(ends, default=0.0)
