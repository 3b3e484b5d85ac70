"""cost.json as rows of a table: what every arm cost on this machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.report.fields import Fields
from laura.store import read_json

COST_FILE = "cost.json"


@dataclass(frozen=True)
class ArmCost:
    """What the runs of one arm cost.

    Attributes:
        arm: Name of the arm.
        runs: Number of runs counted.
        train_seconds: Training time of all of them together.
        tokens_per_second: Median over runs.
        peak_memory_bytes: Largest over runs.
        flops: Sum over runs.
    """

    arm: str
    runs: int
    train_seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    flops: float | None


@dataclass(frozen=True)
class Costs:
    """The whole of cost.json."""

    machine: dict[str, Any]
    arms: list[ArmCost]
    evaluation_seconds: float | None


def read_costs(study: Path) -> Costs | None:
    """Read STUDY/cost.json; None where there is none.

    Raises:
        StoreError: the file is damaged.
    """
    file = study / COST_FILE
    if not file.is_file():
        return None
    fields = Fields(read_json(file), "", str(file))
    by_arm: dict[str, list[Fields]] = {}
    for run in fields.nested_list("runs"):
        by_arm.setdefault(run.text("arm"), []).append(run)
    return Costs(
        machine=fields.nested("machine").plain(),
        arms=[_arm_cost(arm, runs) for arm, runs in by_arm.items()],
        evaluation_seconds=fields.optional_number("evaluation_seconds"),
    )


def _arm_cost(arm: str, runs: list[Fields]) -> ArmCost:
    def found(name: str) -> list[float]:
        values = (run.optional_number(name) for run in runs)
        return [value for value in values if value is not None]

    seconds, speed = found("train_seconds"), found("tokens_per_second")
    peak, flops = found("peak_memory_bytes"), found("flops")
    return ArmCost(
        arm=arm,
        runs=len(runs),
        train_seconds=sum(seconds) if seconds else None,
        tokens_per_second=statistics.median(speed) if speed else None,
        peak_memory_bytes=max(peak) if peak else None,
        flops=sum(flops) if flops else None,
    )
