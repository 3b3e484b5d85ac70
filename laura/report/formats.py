"""Numbers as a reader wants them, the same in every output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from laura.results.schema import Ends, Estimated, Summary, TaskFacts
from laura.results.statistics import Estimate
from laura.results.statistics import count as counted
from laura.results.units import budget_text, memory_text, rate_text

ABSENT = "–"
_LARGE = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def rate(value: float | None) -> str:
    """A learning rate: 0.0003 is `3e-4`, 2.5e-05 is `2.5e-5`."""
    return ABSENT if value is None else rate_text(value)


def rates(values: Sequence[float]) -> str:
    """The rates of several seeds: `1e-3`, or `1e-3 (2 seeds), 2e-3` where they differ."""
    found = sorted(Counter(values).items(), key=lambda one: (-one[1], one[0]))
    if len(found) == 1:
        return rate_text(found[0][0])
    return ", ".join(
        rate_text(value) + (f" ({times} seeds)" if times > 1 else "") for value, times in found
    )


def count(value: float | None) -> str:
    """A count with three digits: 1234567 is `1.23M`."""
    if value is None:
        return ABSENT
    for letter, size in _LARGE:
        # 999.5 and above would print as 1e+03, so it belongs to the next letter.
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def memory(value: float | None) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return ABSENT if value is None else memory_text(value)


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds, the two largest."""
    if seconds is None:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def budget(value: float | None, unit: str) -> str:
    """A budget with its unit: `20k tokens`, `20,123 tokens`, `2 epochs`; no two look alike."""
    if value is None:
        return ABSENT
    if unit == "epochs":
        return f"{budget_text(value)} epoch{'' if value == 1 else 's'}"
    short = float(f"{value:.3g}") == value
    return f"{count(value) if short else budget_text(value)} tokens"


def budget_of(summary: Summary, value: float | None) -> str:
    """A budget in the study's unit."""
    return budget(value, summary.budget.unit)


def unit(task: TaskFacts) -> str:
    """Unit of a task's values as shown."""
    return "%" if task.is_share else task.unit


def change_unit(task: TaskFacts) -> str:
    """Unit of a task's changes as shown."""
    return "points" if task.is_share else task.unit


def value(estimate: Estimate | None, task: TaskFacts, with_unit: bool = False) -> str:
    """A score with its standard error: `41.5 ± 3.5`."""
    return _plus_minus(estimate, task, False, unit(task) if with_unit else "")


def change(estimate: Estimate | None, task: TaskFacts, with_unit: bool = False) -> str:
    """A change with its sign and standard error: `+3.1 ± 1.2`."""
    return _plus_minus(estimate, task, True, change_unit(task) if with_unit else "")


def turned(change_of: Estimate | None, task: TaskFacts, learnt: bool) -> Estimate | None:
    """A change turned so that it is above zero where something was learnt, or forgotten."""
    if change_of is None or task.higher_is_better == learnt:
        return change_of
    return Estimate(-change_of.value, change_of.stderr, change_of.n)


def moved(change_of: Estimate | None, task: TaskFacts, learnt: bool) -> str:
    """How much was learnt, or forgotten, with its standard error: `35.5 ± 2.0`."""
    return _plus_minus(turned(change_of, task, learnt), task, False, "")


def amount(value: float, task: TaskFacts) -> str:
    """A value in the task's unit as shown, without error: `35.5`."""
    return f"{value * task.scale + 0.0:.{1 if task.is_share else 3}f}".replace("-", "−")


def points(value: float, unit_of: str, with_unit: bool = True) -> str:
    """A difference in its unit, shares in points: `+3.1 points`, `+0.0213 nats per token`."""
    if unit_of != "share":
        return f"{signed(value)} {unit_of if with_unit else ''}".strip()
    text = f"{100 * value:+.1f}"
    text = text[1:] if float(text) == 0 else text.replace("-", "−")
    return f"{text} points" if with_unit else text


def interval(found: Estimated) -> str:
    """Both ends of an estimate's interval, as `points` but without the unit: `+1.0 to +5.2`."""
    return ends(found.interval, lambda end: points(end, found.unit, with_unit=False))


def estimated(found: Estimated) -> str:
    """An estimate in words: `+3.1 points (+1.0 to +5.2, n = 200, 3 seeds)`."""
    told = f"{interval(found)}, n = {found.n}, {counted(found.seeds, 'seed')}"
    return f"{points(found.value, found.unit)} ({told})"


def _plus_minus(estimate: Estimate | None, task: TaskFacts, signed: bool, ending: str) -> str:
    if estimate is None:
        return ABSENT
    shown, error = estimate.value * task.scale, estimate.stderr * task.scale
    digits = 1 if task.is_share else 3
    if error > 0 and not task.is_share:  # so that the error has two digits that mean something
        digits = min(5, max(3, 1 - math.floor(math.log10(error))))
    text = f"{shown:{'+' if signed else ''}.{digits}f} ± {error:.{digits}f}"
    if float(f"{shown:.{digits}f}") == 0:  # neither +0.0 nor -0.0
        text = text.replace("-", "").replace("+", "")
    return f"{text.replace('-', '−')} {ending}".rstrip()


def ends(interval: Ends | None, show: Callable[[float], str]) -> str:
    """Both ends of an interval in words: `+0.1 to +0.3`, `600 or more`; empty where there is none.

    Args:
        interval: None for none; an end that is None is open.
        show: Words for one end.
    """
    low, high = interval or (None, None)
    if low is None and high is None:
        return ""
    if high is None:
        return f"{show(low or 0.0)} or more"
    return f"{show(high)} or less" if low is None else f"{show(low)} to {show(high)}"


def signed(value: float) -> str:
    """A number with its sign and three digits: `+0.0213`."""
    return f"{value + 0.0:+.3g}".replace("-", "−")


def items(task: TaskFacts) -> str:
    """How many items a task was measured on: `n = 200 questions`."""
    return f"n = {task.n} {task.items}" if task.n else "n not recorded"


def seeds(values: list[int]) -> str:
    """Seeds in words: `1 seed (0)`, `3 seeds (0, 1, 2)`."""
    return f"{counted(len(values), 'seed')} ({', '.join(map(str, values))})"


def words(value: object) -> str:
    """A setting's value, or a machine's part, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if isinstance(value, list):
        return " ".join(map(words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
