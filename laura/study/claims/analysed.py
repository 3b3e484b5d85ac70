"""Claims whose numbers analysis.json holds already: matched learning, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from laura.student import quantile
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

    The difference and its interval are those of `tradeoff.matched` (first arm minus second,
    of what was forgotten), computed there over whole curves of rates and budgets. The
    interval is taken as Student's with one degree fewer than seeds, which only widens p.
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
    """Distinct outputs a prompt, LoRA minus full, from the same number of samples."""

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
                return [_distinct(lora, full, *(side[max(common)] for side in sides))]
        raise TooThin("no samples of both arms at one budget")

    return look_at_each(settings, look)


def _by_budget(
    setting: Setting, arm: Kind, rows: Sequence[dict[str, Any]]
) -> dict[float, dict[int, dict[str, Any]]]:
    best = setting.evidence.best.get(arm.name)
    found: dict[float, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["arm"] != arm.name or row["learning_rate"] != best:
            continue
        if (row["distinct"] or {}).get("value") is not None:
            found.setdefault(float(row["budget"]), {})[row["seed"]] = row
    return found


def _distinct(
    lora: Kind, full: Kind, first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]
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
    # Prompts are the same on both sides; without their values the errors are added, too large.
    squares = [row["distinct"]["stderr"] ** 2 for pair in pairs for row in pair]
    effect = over_seeds(values, n, sum(squares) / len(pairs))
    what = f"distinct outputs a prompt of {lora.name} minus {full.name}"
    return Piece((lora.name, full.name), what, effect, f"of {pairs[0][0]['samples']}")


def _from_interval(row: dict[str, Any]) -> Effect:
    low, high = (float(end) for end in row["interval"])
    freedom = row["seeds"] - 1
    stderr = (high - low) / 2 / quantile((1 + LEVEL) / 2, freedom)
    part = Part("seeds", stderr**2, freedom)
    return Effect((low + high) / 2, (part,), int(row["n"]), int(row["seeds"]))
