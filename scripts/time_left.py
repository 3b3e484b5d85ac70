"""How true the time left is: finished studies replayed from the times of their own files.

    python scripts/time_left.py STUDY...

For each study, at 5, 10, 20, ... 90 % of its time: what `laura watch` would have told, over what
was true. Of a study that was stopped and continued the longest stretch without a break counts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from laura.recipe.reading import stored_recipe
from laura.results.store import StudyStore, read_json
from laura.study.remaining import seconds_left
from laura.study.steering import Steering
from laura.study.summary import evidence_of, gather
from laura.watch.view import ReadRun, paces_of

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
WORKERS = 2
IDLE_SECONDS = 60.0


class Replayed:
    """When a run began, what it had done when, and when it ended."""

    def __init__(self, facts: Any, points: list[Any]) -> None:
        self.facts, folder = facts, facts.store.folder
        self.begun = (folder / "run.json").stat().st_mtime
        self.steps, at, tokens = [(self.begun, 0.0)], self.begun, 0.0
        for row in facts.metrics():
            at, tokens = at + row["seconds"], tokens + row["tokens_per_second"] * row["seconds"]
            self.steps.append((at, tokens))
        self.points = []
        spent = at - self.begun
        for point in points:
            files = [facts.store.evaluation(point.step, task) for task in point.results]
            self.points.append((max(file.stat().st_mtime for file in files), point))
            spent += sum(result.seconds for result in point.results.values())
        self.end = max(at for at, _ in self.points)
        self.broken = self.end - self.begun > spent + IDLE_SECONDS

    def at(self, now: float) -> ReadRun:
        """The run as it stood then."""
        state = self.facts.state if self.end <= now else "open"
        done = [step for step in self.steps if step[0] <= now]
        return ReadRun(
            replace(self.facts, state=state),
            [point for at, point in self.points if at <= now],
            trained=done[-1][1],
            train_seconds=done[-1][0] - self.begun,
            live=self.end > now,
        )


def replay(folder: Path) -> list[tuple[float, float | None]]:
    """At each share, the seconds that were left and those that were told."""
    store, recipe = StudyStore(folder), stored_recipe(folder / "recipe.yaml")
    evidence = gather(store, recipe)
    runs = [
        Replayed(run, [p for p in evidence.points if p.run_id == run.run_id])
        for run in evidence.runs
    ]
    parts: list[list[Replayed]] = [[]]
    for one in sorted(runs, key=lambda run: run.begun):
        last = max((run.end for run in parts[-1]), default=one.begun)
        if one.broken or one.begun - last > IDLE_SECONDS:
            parts.append([])
        if not one.broken:
            parts[-1].append(one)
    stretch = max(parts, key=len)
    before = [run for run in runs if run.end < stretch[0].begun]
    facts = read_json(folder / "study.json")
    base = sum(result.seconds for result in evidence.base.values())
    start, end = stretch[0].begun, max(run.end for run in stretch)
    found = []
    for share in SHARES:
        now = start + share * (end - start)
        reads = [run.at(now) for run in (*before, *stretch) if run.begun <= now]
        points = [point for read in reads for point in read.points]
        then = evidence_of(recipe, facts, evidence.base, [read.facts for read in reads], points)
        paces = paces_of(reads, then, Steering())
        found.append((end - now, seconds_left(list(paces.values()), base, WORKERS)))
    return found


def main() -> None:
    """Print a table, and the worst from a tenth on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path)
    ratios = []
    print(f"{'':20}{'seconds':>8}" + "".join(f"{share:>7.0%}" for share in SHARES))
    for folder in parser.parse_args().studies:
        found = replay(folder)
        row = [told / true for true, told in found if told]
        whole = found[0][0] / (1 - SHARES[0])
        print(f"{folder.name:20}{whole:8.0f}" + "".join(f"{ratio:7.2f}" for ratio in row))
        ratios += [max(r, 1 / r) for r, s in zip(row, SHARES, strict=True) if s >= 0.1]
    within = sum(ratio <= 1.3 for ratio in ratios)
    print(f"from a tenth on: {within} of {len(ratios)} within 1.3, worst {max(ratios):.2f}")


if __name__ == "__main__":
    main()
