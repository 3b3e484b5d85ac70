"""Claims whose numbers analysis.json holds already: matched learning, diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from laura.results.statistics import quantile
from laura.study.claims.settings import FORGETTING, Kind, Setting
from laura.study.claims.verdicts import Finding, Piece, look_at_each
from laura.study.effects import (
    LEVEL,
    MIN_ITEMS,
    MIN_SEEDS,
    Effect,
    Part,
    TooThin,
    count,
    over_seeds,
)


def forgets_less_at_matched_learning(settings: Sequence[Setting]) -> Finding:
    """At the highest level of learning that both arms reach, full forgets more than LoRA.

    The difference is that of `tradeoff.matched` (first arm minus second, of what was
    forgotten), along the curves of each arm's best rate where they were compared so: only
    these have several seeds. The percentile interval told there is too narrow with few
    seeds k, by sqrt((k - 1) / k) and by taking the normal for Student's t. How much of it
    is seeds and how much items it does not say, so all of it is taken for seeds: its half
    becomes 1.96 standard errors, times sqrt(k / (k - 1)), with k - 1 degrees of freedom.
    With three seeds the interval here is 2.7 times as wide.
    """

    def look(setting: Setting) -> list[Piece]:
        full, lora = setting.full(), setting.lora()
        rows = [
            row
            for row in (setting.analysis.get("tradeoff") or {}).get("matched") or []
            if set(row["arms"]) == {full.name, lora.name} and row.get("interval") is not None
        ]
        if not rows:
            raise TooThin("no level of learning that both arms reach was compared")
        rows = [r for r in rows if r.get("curve") == "best_rate"] or rows
        row = max(rows, key=lambda one: float(one["level"]))
        if row["seeds"] < MIN_SEEDS or row["n"] < MIN_ITEMS:
            raise TooThin(
                f"{count(row['seeds'], 'seed')} and {count(row['n'], 'item')} at the matched "
                f"level; {MIN_SEEDS} and {MIN_ITEMS} are needed"
            )
        sign = 1.0 if row["arms"][0] == full.name else -1.0
        what = f"forgetting of {full.name} minus {lora.name} at learning {row['level']:.3g}"
        return [Piece((lora.name, full.name), what, _from_interval(row).scaled(sign),
                      setting.unit(FORGETTING))]  # fmt: skip

    return look_at_each(settings, look)


def keeps_diversity(settings: Sequence[Setting]) -> Finding:
    """Distinct outputs a prompt, LoRA minus full, from the same number of samples.

    Differences of seeds from `diversity`. The error over prompts is the paired one of
    `diversity_differences` where it is there (it holds seeds too, so it is too large),
    else both arms' errors added.
    """

    def look(setting: Setting) -> list[Piece]:
        full, lora = setting.full(), setting.lora()
        rows = setting.analysis.get("diversity") or []
        if not rows:
            raise TooThin("no samples to count distinct outputs in; add measure.extras")
        # The first extra that both arms have, at the largest budget both were sampled at.
        for extra in dict.fromkeys(row["extra"] for row in rows):
            own = [row for row in rows if row["extra"] == extra]
            sides = [_by_budget(setting, arm, own) for arm in (lora, full)]
            common = sides[0].keys() & sides[1].keys()
            if common:
                paired = _paired_error(setting, extra, {lora.name, full.name}, max(common))
                first, second = (side[max(common)] for side in sides)
                return [_distinct(lora, full, first, second, paired)]
        raise TooThin("no samples of both arms at one budget")

    return look_at_each(settings, look)


def _by_budget(
    setting: Setting, arm: Kind, rows: Sequence[dict[str, Any]]
) -> dict[float, dict[int, dict[str, Any]]]:
    best = setting.evidence.best.get(arm.name, {})
    found: dict[float, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["arm"] != arm.name or row["learning_rate"] != best.get(row["seed"]):
            continue
        if (row["distinct"] or {}).get("value") is not None:
            found.setdefault(float(row["budget"]), {})[row["seed"]] = row
    return found


def _paired_error(setting: Setting, extra: str, arms: set[str], budget: float) -> float | None:
    """Standard error of the difference of distinct outputs, paired by prompt."""
    for row in setting.analysis.get("diversity_differences") or []:
        if (row["extra"], row["measure"]) != (extra, "distinct") or row["budget"] != budget:
            continue
        if set(row["arms"]) == arms:
            return float(row["stderr"])
    return None


def _distinct(
    lora: Kind,
    full: Kind,
    first: dict[int, dict[str, Any]],
    second: dict[int, dict[str, Any]],
    paired: float | None,
) -> Piece:
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise TooThin("the arms were sampled with different seeds")
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if any(a["samples"] != b["samples"] for a, b in pairs):
        raise TooThin("the arms were sampled a different number of times a prompt")
    n = min(int(row["distinct"]["n"]) for pair in pairs for row in pair)
    if n < MIN_ITEMS:
        raise TooThin(f"{count(n, 'prompt')} sampled; {MIN_ITEMS} are needed")
    values = [a["distinct"]["value"] - b["distinct"]["value"] for a, b in pairs]
    squares = [row["distinct"]["stderr"] ** 2 for pair in pairs for row in pair]
    variance = sum(squares) / len(pairs) if paired is None else paired**2
    effect = over_seeds(values, n, variance)
    what = f"distinct outputs a prompt of {lora.name} minus {full.name}"
    return Piece((lora.name, full.name), what, effect, f"of {pairs[0][0]['samples']}")


def _from_interval(row: dict[str, Any]) -> Effect:
    low, high = (float(end) for end in row["interval"])
    freedom = row["seeds"] - 1
    stderr = (high - low) / 2 / quantile((1 + LEVEL) / 2, math.inf)
    part = Part("seeds", stderr**2 * row["seeds"] / freedom, freedom)
    return Effect(float(row["difference"]), (part,), int(row["n"]), int(row["seeds"]))
