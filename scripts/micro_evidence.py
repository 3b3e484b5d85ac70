"""Write the tables of docs/evidence/micro from finished study folders, as Markdown.

    python scripts/micro_evidence.py studies/micro studies/micro-math > tables.md

A number is a mean over the seeds at an arm's best rate with a 95 % interval of
Student's t over seeds; a difference is taken seed by seed. A phenomenon is `seen`
or `reversed` where that interval leaves zero out, and else `not told apart`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

# 97.5 % quantiles of Student's t by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
LEVELS = (0.5, 0.8, 0.9)
METHODS = ("full", "lora")

Point = dict[str, Any]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval."""
    return fmean(values), T[len(values) - 1] * stdev(values) / math.sqrt(len(values))


def shown(values: list[float], digits: int = 3) -> str:
    """An interval in words."""
    middle, half = interval(values)
    return f"{middle:+.{digits}f} ± {half:.{digits}f}"


def verdict(values: list[float], sign: int) -> str:
    """Whether the differences have the sign that is claimed."""
    middle, half = interval(values)
    if abs(middle) <= half:
        return "not told apart"
    return "seen" if middle * sign > 0 else "reversed"


def learning(point: Point, task: str) -> float:
    """Change of a learning task against the base."""
    return float(point["changes"][task]["value"])


def forgetting(point: Point, name: str = "mean") -> float:
    """Change of a forgetting task, or of the mean of the three, against the base."""
    return float(point["changes"][name]["value"])


def grid_table(summary: dict[str, Any]) -> list[str]:
    """Every rate with the first seed at every budget."""
    task = summary["measure"]["learning"][0]
    first = min(p["seed"] for p in summary["points"])
    rows = ["| arm | rate | tokens | learning | source mean | source loss |", "|" + "---|" * 6]
    for p in summary["points"]:
        if p["seed"] == first:
            score = p["scores"][task]
            rows.append(
                f"| {p['arm']} | {p['learning_rate']:g}{' *' if p['selected'] else ''} "
                f"| {p['budget']:,} | {score['value']:.3f} ± {score['stderr']:.3f} "
                f"| {forgetting(p):+.3f} | {forgetting(p, 'source_loss'):+.3f} |"
            )
    return rows


def seeds_table(summary: dict[str, Any]) -> list[str]:
    """Both arms at their best rates over all seeds, and LoRA minus full."""
    task = summary["measure"]["learning"][0]
    full, lora = (next(a["name"] for a in summary["arms"] if a["method"] == m) for m in METHODS)
    seeds = sorted({p["seed"] for p in summary["points"] if p["selected"]})
    by = {(p["arm"], p["budget"], p["seed"]): p for p in summary["points"] if p["selected"]}
    claims = (
        ("LoRA learns less", -1, lambda p: learning(p, task)),
        ("LoRA forgets less (source mean)", 1, forgetting),
        ("LoRA forgets less (source loss)", -1, lambda p: forgetting(p, "source_loss")),
    )
    rows = [
        f"| tokens | claim of the paper | {full} | {lora} | {lora} − {full} | here |",
        "|" + "---|" * 6,
    ]
    for budget in sorted({p["budget"] for p in summary["points"]}):
        for claim, sign, value in claims:
            a, b = ([value(by[arm, budget, s]) for s in seeds] for arm in (full, lora))
            apart = [y - x for x, y in zip(a, b, strict=True)]
            rows.append(
                f"| {budget:,} | {claim} | {shown(a)} | {shown(b)} | {shown(apart)} "
                f"| {verdict(apart, sign)} |"
            )
    return rows


def matched_table(summary: dict[str, Any]) -> list[str]:
    """The least that each arm forgot at any rate and budget, at given levels of learning."""
    task = summary["measure"]["learning"][0]
    first = min(p["seed"] for p in summary["points"])
    rows = ["| learning at least | arm | source mean | rate | tokens |", "|" + "---|" * 5]
    for level in LEVELS:
        for arm in (a["name"] for a in summary["arms"]):
            known = [p for p in summary["points"] if p["arm"] == arm and p["seed"] == first]
            able = [p for p in known if p["scores"][task]["value"] >= level]
            if not able:
                rows.append(f"| {level} | {arm} | never reached | | |")
                continue
            best = max(able, key=forgetting)
            rows.append(
                f"| {level} | {arm} | {forgetting(best):+.3f} ± "
                f"{best['changes']['mean']['stderr']:.3f} | {best['learning_rate']:g} "
                f"| {best['budget']:,} |"
            )
    return rows


def main() -> None:
    """Print the tables of every study given."""
    for folder in sys.argv[1:]:
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        seeds = len({p["seed"] for p in summary["points"] if p["selected"]})
        base = {k: v["value"] for k, v in summary["base"]["scores"].items()}
        parts = (
            [f"### {summary['name']}, {summary['domain']}", ""],
            ["Base: " + ", ".join(f"{k} {v:.3f}" for k, v in base.items()) + ".", ""],
            [f"At the best rates, {seeds} seeds, change against the base:", ""],
            seeds_table(summary),
            ["", "Least forgetting at a level of learning, first seed:", ""],
            matched_table(summary),
            ["", "All rates, first seed (* best by validation loss):", ""],
            grid_table(summary),
            [""],
        )
        print("\n".join(line for part in parts for line in part))


if __name__ == "__main__":
    main()
