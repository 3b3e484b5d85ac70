"""Every rate of a study with every seed at every budget, as a Markdown table: no conclusion.

    python scripts/micro_evidence.py studies/micro studies/micro-math > tables.md

Cells hold what was learnt and forgotten, in points, seed by seed; what follows from it says
`laura claims`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from laura.results.schema import MEAN, SUMMARY_FILE, PointRow, Summary, read_file
from laura.results.units import rate_text


def table(summary: Summary) -> list[str]:
    """One row for each arm, rate and budget."""
    task = summary.primary
    assert task, "the study measured no learning"
    rows = [
        "| arm | rate | best for | tokens | learnt | each seed | forgot | each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, float, float], list[PointRow]] = defaultdict(list)
    for point in summary.points:
        groups[point.arm, point.learning_rate, point.budget].append(point)
    for (arm, rate, budget), points in sorted(groups.items()):
        points.sort(key=lambda p: p.seed)
        chosen = sum(p.selected for p in points)
        cells = []
        for name, sign in ((task, 100), (MEAN, -100)):
            values = [sign * p.changes[name].value for p in points]
            cells += [f"{fmean(values):.1f}", ", ".join(f"{v:.0f}" for v in values)]
        best = f"{chosen} of {len(points)}" if chosen else ""
        rows.append(f"| {arm} | {rate_text(rate)} | {best} | {budget:,} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Print a table for each study folder."""
    for folder in map(Path, sys.argv[1:]):
        summary = read_file(Summary, folder / SUMMARY_FILE)
        scores = ", ".join(
            f"{name} {score.value:.3f}" for name, score in summary.base.scores.items()
        )
        print(f"### {folder.name}\n\nBase: {scores}.\n")
        print("\n".join(table(summary)) + "\n")


if __name__ == "__main__":
    main()
