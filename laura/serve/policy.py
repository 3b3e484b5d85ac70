"""Which adapters are served, judged by what is recorded of them. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from laura.results.errors import UsageError
from laura.results.schema import Record

Unrecorded = Literal["allow", "warn", "refuse"]
Action = Literal["warn", "refuse"]


@dataclass(frozen=True)
class Judgement:
    """What a policy says of an adapter.

    Attributes:
        refused: Why it is not served; None where it is.
        warnings: What its users should know.
    """

    refused: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policy:
    """Conditions on an adapter's record.

    Attributes:
        max_forgetting: Most that may have been forgotten, in the unit of the record (0.02 of
            a share). The upper end of the record's interval counts, not its value alone: an
            adapter measured on few items must not pass by luck. None for no bound.
        unrecorded: What to do with an adapter that has no `laura.json`.
        action: What to do with one that breaks the bound.

    Raises:
        UsageError: the bound is not finite, or there is no such choice.
    """

    max_forgetting: float | None = None
    unrecorded: Unrecorded = "warn"
    action: Action = "refuse"

    def __post_init__(self) -> None:
        if self.max_forgetting is not None and not math.isfinite(self.max_forgetting):
            raise UsageError(f"max_forgetting is {self.max_forgetting}; give a finite number")
        for name, value, choices in (
            ("unrecorded", self.unrecorded, get_args(Unrecorded)),
            ("action", self.action, get_args(Action)),
        ):
            if value not in choices:
                raise UsageError(f"{name} is {value!r}; allowed are {', '.join(choices)}")

    def judge(self, record: Record | None) -> Judgement:
        """Judge an adapter by its record; None where it has none."""
        if record is None:
            return self._of_unrecorded()
        found, bound = record.forgetting, self.max_forgetting
        low, high = found.interval
        if not low <= found.value <= high:
            return Judgement(
                f"its laura.json contradicts itself: forgetting of {found.value:+.3g} lies "
                f"outside its own interval, {low:+.3g} to {high:+.3g}; write it again with "
                "`laura recommend STUDY --adapter DIR`"
            )
        if bound is None or high <= bound:
            return Judgement()
        sure = "forgot more than" if low > bound else "may have forgotten more than"
        return self._broken(
            f"it {sure} --max-forgetting {bound:g} allows: the upper end of the interval, "
            f"{high:+.3g}, is above it (forgetting {found.value:+.3g} {found.unit}, "
            f"{found.level:.1%} interval {low:+.3g} to {high:+.3g}, on {', '.join(found.tasks)})"
        )

    def _of_unrecorded(self) -> Judgement:
        why = "it has no laura.json, so what it learned and forgot is not known"
        if self.max_forgetting is not None:
            why += f" and --max-forgetting {self.max_forgetting:g} cannot be checked"
        if self.unrecorded == "refuse":
            return Judgement(f"{why}; `laura recommend STUDY --adapter DIR` writes one")
        return Judgement(warnings=(why,) if self.unrecorded == "warn" else ())

    def _broken(self, why: str) -> Judgement:
        return Judgement(why) if self.action == "refuse" else Judgement(warnings=(why,))
