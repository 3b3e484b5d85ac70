"""What the targets of an adapter mean, as names; no torch, so that a plan can ask too."""

from __future__ import annotations

from collections.abc import Collection

from laura.models.families import FAMILIES, LLAMA

_ALL = (LLAMA, *FAMILIES.values())
GROUPS = {
    group: tuple(dict.fromkeys(name for family in _ALL for name in family.groups[group]))
    for group in LLAMA.groups
}
"""Of every family: a model has some of these."""


def group_of(names: Collection[str]) -> str:
    """Which group of some family these names are; "" for none."""
    pairs = (pair for family in _ALL for pair in family.groups.items())
    return next((group for group, own in pairs if set(names) == set(own)), "")


def is_named(name: str, pattern: str) -> bool:
    """Whether a module's full name is a pattern, or ends in `.PATTERN`, as PEFT matches."""
    return name == pattern or name.endswith("." + pattern)
