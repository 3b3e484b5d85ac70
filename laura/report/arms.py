"""Which arms belong beside one another: told from their settings, never from their names."""

from __future__ import annotations

import json
from typing import Any

from laura.report.reading import Arm, Summary

DROPOUTS = ("attention_dropout", "residual_dropout")


def setting(arm: Arm, name: str) -> float:
    """A setting that is a number; 0 where it is absent, null or no number."""
    value = arm.settings.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def is_regularised(arm: Arm) -> bool:
    """Whether an arm of full finetuning decays its weights or drops activations."""
    return arm.method == "full" and any(setting(arm, name) for name in ("weight_decay", *DROPOUTS))


def regulariser(arm: Arm) -> str:
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


def families(summary: Summary, *varied: str) -> dict[str, list[Arm]]:
    """Arms that differ in these settings alone, under a name of what they share.

    Families of one are left out, and arms whose settings vary in nothing.
    """
    found: dict[str, list[Arm]] = {}
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


def _key(arm: Arm, varied: tuple[str, ...]) -> str:
    kept = {name: value for name, value in arm.settings.items() if name not in varied}
    return json.dumps([arm.method, kept], sort_keys=True, default=str)


def _shared(settings: list[dict[str, Any]]) -> set[str]:
    """Settings that are the same for all, so that naming them says nothing."""
    first = settings[0] if settings else {}
    return {name for name in first if all(other.get(name) == first[name] for other in settings)}


def _name(arm: Arm, varied: tuple[str, ...], shared: set[str]) -> str:
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
