"""Which arms belong beside one another: told from their settings, never from their names."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from laura.results.schema import ArmRow, Summary

DROPOUTS = ("attention_dropout", "residual_dropout")
MOST_DRAWN = 4  # arms that a chart with several lines for each can hold
# What a setting is where it is not used; any other is null, false or 0 there.
PLAIN = {"targets": "all", "init": "default", "lora_plus_ratio": 1, "weight_decay_toward": "zero"}
# What every arm of LoRA has, and what says nothing about how an arm was trained.
NO_VARIATION = {"rank", "alpha", "external"}


def setting(arm: ArmRow, name: str) -> float:
    """A setting that is a number; 0 where it is absent, null or no number."""
    value = arm.settings.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def is_regularised(arm: ArmRow) -> bool:
    """Whether an arm of full finetuning decays its weights or drops activations."""
    return arm.method == "full" and any(setting(arm, name) for name in ("weight_decay", *DROPOUTS))


def regulariser(arm: ArmRow) -> str:
    """What holds an arm back, in words."""
    told = []
    if decay := setting(arm, "weight_decay"):
        base = arm.settings.get("weight_decay_toward") == "base"
        told.append(f"weight decay {decay:g} toward {'the base (L2-SP)' if base else 'zero'}")
    for name in (*DROPOUTS, "dropout"):
        if share := setting(arm, name):
            told.append(f"{name.replace('_', ' ')} {share:g}")
    if arm.method == "lora":
        told.insert(0, f"low rank {setting(arm, 'rank'):g}")
    return ", ".join(told) or "nothing"


def variations(arm: ArmRow) -> int:
    """In how many settings an arm is more than plain LoRA (alpha 2r) or plain full finetuning."""
    used = [
        name
        for name, value in arm.settings.items()
        if name not in NO_VARIATION and value and value != PLAIN.get(name)
    ]
    return len(used) + (setting(arm, "alpha") != 2 * setting(arm, "rank"))


def representatives(summary: Summary, names: Collection[str] | None = None) -> list[str]:
    """The arms that stand for all where a chart cannot hold every one, at most four.

    The plainest of each method, which is the one with the fewest variations; of LoRA the
    plainest by rank, evenly from the lowest to the highest.

    Args:
        summary: The study.
        names: Arms that there is something to draw of; None for every arm.

    Returns:
        Their names, in the study's order; all where there are at most four.
    """
    arms = [arm for arm in summary.arms if names is None or arm.name in names]
    if len(arms) <= MOST_DRAWN:
        return [arm.name for arm in arms]
    kept: list[ArmRow] = []
    for method in sorted({arm.method for arm in arms}, key=lambda method: method == "lora"):
        own = [arm for arm in arms if arm.method == method]
        fewest = min(map(variations, own))
        plain = [arm for arm in own if variations(arm) == fewest]
        by_rank = sorted(plain, key=lambda arm: setting(arm, "rank"))
        kept += _evenly(by_rank, MOST_DRAWN - len(kept)) if method == "lora" else plain[:1]
    chosen = {arm.name for arm in kept[:MOST_DRAWN]}
    return [arm.name for arm in arms if arm.name in chosen]


def _evenly(arms: Sequence[ArmRow], most: int) -> list[ArmRow]:
    """At most so many, the first and the last among them."""
    if len(arms) <= most:
        return list(arms)
    return [arms[round(place * (len(arms) - 1) / max(1, most - 1))] for place in range(most)]


def who_is_drawn(
    drawn: Collection[str], every: Collection[str], whole: str, how: str = "Drawn are"
) -> str:
    """A sentence on the arms that stand for all; empty where all are drawn.

    Args:
        drawn: Their names, see `representatives`.
        every: Names of the arms that there is something to draw of.
        whole: What holds them all, such as "The table below has".
        how: How they are drawn.
    """
    if len(drawn) >= len(every):
        return ""
    return (
        f"{how} {', '.join(drawn)}: the plainest arms of each method, of LoRA by rank. "
        f"{whole} all {len(every)} arms."
    )


def families(summary: Summary, *varied: str) -> dict[str, list[ArmRow]]:
    """Arms that differ in these settings alone, under a name of what they share.

    Families of one are left out, and arms whose settings vary in nothing.
    """
    found: dict[str, list[ArmRow]] = {}
    for arm in summary.arms:
        found.setdefault(_key(arm, varied), []).append(arm)
    kept = [
        arms
        for arms in found.values()
        if any(len({json.dumps(arm.settings.get(name)) for arm in arms}) > 1 for name in varied)
    ]
    named = {}
    for arms in kept:
        alike = [other[0].settings for other in kept if other[0].method == arms[0].method]
        named[_name(arms[0], varied, _shared(alike))] = arms
    return named


def _key(arm: ArmRow, varied: tuple[str, ...]) -> str:
    kept = {name: value for name, value in arm.settings.items() if name not in varied}
    return json.dumps([arm.method, kept], sort_keys=True, default=str)


def _shared(settings: list[dict[str, Any]]) -> set[str]:
    """Settings that are the same for all, so that naming them says nothing."""
    first = settings[0] if settings else {}
    return {name for name in first if all(other.get(name) == first[name] for other in settings)}


def _name(arm: ArmRow, varied: tuple[str, ...], shared: set[str]) -> str:
    told = [
        f"{name.replace('_', ' ')} {words(value)}"
        for name, value in arm.settings.items()
        if name not in varied and name not in shared
    ]
    return ", ".join([arm.method, *told])


def words(value: Any) -> str:
    """A setting's value as a reader wants it."""
    if isinstance(value, list):
        return " ".join(map(words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
