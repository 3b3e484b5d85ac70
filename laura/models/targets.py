"""What the targets of an adapter mean, as names; no torch, so that a plan can ask too."""

from __future__ import annotations

GROUPS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
GROUPS["all"] = GROUPS["attention"] + GROUPS["mlp"]


def is_named(name: str, pattern: str) -> bool:
    """Whether a module's full name is a pattern, or ends in `.PATTERN`, as PEFT matches."""
    return name == pattern or name.endswith("." + pattern)
