"""`laura plan SERIES`: the plan of every setting, and what they take one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from laura.recipe.reading import Series
from laura.results.errors import UsageError
from laura.study.plan import plan
from laura.study.plan_claims import could_decide


def plan_series(
    series: Series, *, epoch_tokens: int | None = None, **options: Any
) -> dict[str, Any]:
    """What each setting of a series takes, and all of them.

    Args:
        series: The settings.
        epoch_tokens: As for `plan`, with one setting only: every data set has its own.
        options: As for `plan`.

    Returns:
        {"name", "settings": {name: plan}, "totals", "decides"}.

    Raises:
        UsageError: `epoch_tokens` with several settings.
        LauraError: as `plan`.
    """
    if epoch_tokens is not None and len(series.settings) > 1:
        names = ", ".join(series.settings)
        raise UsageError(
            f"--epoch-tokens is of one data set; say of which with --setting, one of: {names}"
        )
    plans = {
        name: plan(recipe, epoch_tokens=epoch_tokens, **options)
        for name, recipe in series.settings.items()
    }
    totals = series_totals({name: found["totals"] for name, found in plans.items()})
    width = min(found["base"]["least_width"] for found in plans.values())
    decides = could_decide(series.settings, width)
    return {"name": series.name, "settings": plans, "totals": totals, "decides": decides}


def series_totals(totals: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Several settings' totals as one; they are carried out one after the other.

    What one setting cannot tell is left out of the sums, and the setting named in `unknown`.

    Args:
        totals: `totals` of each setting's plan.
    """
    each = list(totals.values())
    kinds = ("checkpoints", "corpus", "samples", "elsewhere")
    disk = {kind: _sum(one["disk"][kind] for one in each) or 0 for kind in kinds}
    # A setting's states are deleted when its runs have ended.
    disk["resume"] = max(one["disk"]["resume"] for one in each)
    times = [one["seconds"] for one in each if one["seconds"] is not None]
    return {
        "runs": sum(one["runs"] for one in each),
        "longer": sum(one["longer"] for one in each),
        "tokens": _sum(one["tokens"] for one in each),
        "flops": _sum(one["flops"] for one in each),
        "seconds": [sum(ends) for ends in zip(*times, strict=True)] if times else None,
        "peak": max((one["peak"] for one in each if one["peak"] is not None), default=None),
        "evaluation": {
            key: sum(one["evaluation"][key] for one in each) for key in each[0]["evaluation"]
        },
        "disk": {**disk, "all": sum(disk.values())},
        "unknown": [name for name, one in totals.items() if one["flops"] is None],
    }


def _sum(counts: Iterable[int | None]) -> int | None:
    """Of those that are known; None where none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
