"""Remedies of a study ranked by forgetting at equal learning, and the claims about them.

    python scripts/remedy_tables.py studies/micro-arena studies/micro-arena-math > tables.md

Every arm stands beside the plain arm of its own method, as the judge compares them; what follows
from that it says itself (`claims.json`), this only sorts and prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    Analysis,
    Area,
    Comparison,
    Estimated,
    Judgement,
    read_file,
)

HEAD = (
    "arm", "beside", "learnt, tuned", "forgot, tuned", "forgot at equal learning",
    "with all others", "area of the front", "told",
)  # fmt: skip


def points(value: float) -> str:
    """A share as signed points."""
    return f"{100 * value:+.1f}"


def ends(interval: tuple[float, float] | None) -> str:
    """An interval of shares in points."""
    return "–" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def told(row: Comparison) -> str:
    """What the two intervals tell of the second arm; below zero the first forgot less."""
    if row.equal_learning is None or row.joint is None:
        return f"nothing: {row.reason}"
    for low, high, word in ((*row.joint, ""), (*row.equal_learning.interval, ", alone")):
        if low > 0:
            return f"**forgets less{word}**"
        if high < 0:
            return f"**forgets more{word}**"
    return "not told apart"


def cells(found: Estimated | None) -> str:
    """A difference and its interval, turned to second minus first."""
    if found is None:
        return "–"
    low, high = found.interval
    return f"{points(-found.value)} ({ends((-high, -low))})"


def ranking(judged: Judgement, areas: dict[str, Area]) -> list[str]:
    """A row for each arm, what forgets least at equal learning first."""
    rows = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    ranked = sorted(
        judged.comparisons,
        key=lambda row: -row.equal_learning.value if row.equal_learning else float("inf"),
    )
    for row in ranked:
        joint = None if row.joint is None else (-row.joint[1], -row.joint[0])
        area = areas.get(row.arms[1])
        spread = "" if area is None or area.interval is None else (
            f" ({area.interval[0]:.2f} to {area.interval[1]:.2f})"
        )  # fmt: skip
        rows.append(
            f"| {row.arms[1]} | {row.arms[0]} | {cells(row.learning)} | {cells(row.forgetting)} "
            f"| {cells(row.equal_learning)} | {ends(joint)} "
            f"| {'–' if area is None else f'{area.value:.2f}{spread}'} | {told(row)} |"
        )
    return rows


def claims(judged: Judgement) -> list[str]:
    """A row for each claim that could be judged."""
    rows = ["| claim | joint | alone | effect |", "|---|---|---|---|"]
    for claim in judged.claims:
        if claim.p is not None:
            effect = "–" if claim.effect is None else (
                f"{claim.effect.value:+.3g} ({claim.effect.interval[0]:+.3g} to "
                f"{claim.effect.interval[1]:+.3g}) {claim.effect.unit}"
            )  # fmt: skip
            said = f"{claim.statement} ({claim.source})"
            rows.append(f"| {said} | {claim.verdict} | {claim.alone} | {effect} |")
    return rows


def main() -> None:
    """Print both tables of each study folder."""
    for folder in map(Path, sys.argv[1:]):
        judged = read_file(Judgement, folder / CLAIMS_FILE)
        tradeoff = read_file(Analysis, folder / ANALYSIS_FILE).tradeoff
        areas = {} if tradeoff is None else tradeoff.area
        print(f"### {folder.name}\n\n{judged.answer}\n")
        print("\n".join([*ranking(judged, areas), "", *claims(judged)]) + "\n")


if __name__ == "__main__":
    main()
