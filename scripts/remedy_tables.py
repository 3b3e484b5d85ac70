"""Remedies of a study ranked by forgetting at equal learning, their scores, and their claims.

    python scripts/remedy_tables.py studies/micro-arena > tables.md     a study, or a series

Every arm stands beside the plain arm of its own method, as the judge compares them; what follows
from that it says itself (`claims.json`), this only sorts and prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from laura.report import formats
from laura.report.arms import groups
from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    SUMMARY_FILE,
    Analysis,
    Area,
    Comparison,
    Estimated,
    Judgement,
    Summary,
    read_file,
)
from laura.results.store import SeriesStore, StudyStore

HEAD = (
    "arm", "beside", "learnt, tuned", "forgot, tuned", "forgot at equal learning",
    "with all others", "area of the front", "told",
)  # fmt: skip


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


def turned(found: Estimated | None) -> str:
    """A difference and its interval, as second minus first."""
    if found is None:
        return formats.ABSENT
    return f"{formats.points(-found.value, found.unit)} ({ends(found.interval, found.unit)})"


def ends(interval: tuple[float, float], unit: str) -> str:
    """Both ends of an interval, as second minus first."""
    low, high = interval
    return formats.ends((-high, -low), lambda end: formats.points(end, unit, with_unit=False))


def area_text(area: Area | None) -> str:
    """An area and its interval."""
    if area is None:
        return formats.ABSENT
    return f"{area.value:.2f} ({formats.ends(area.interval, '{:.2f}'.format)})"


def ranking(judged: Judgement, areas: dict[str, Area]) -> list[str]:
    """A row for each arm, what forgets least at equal learning first; plain arms last."""
    rows = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    ranked = sorted(
        judged.comparisons,
        key=lambda row: -row.equal_learning.value if row.equal_learning else float("inf"),
    )
    for row in ranked:
        joint = formats.ABSENT
        if row.joint is not None and row.equal_learning is not None:
            joint = ends(row.joint, row.equal_learning.unit)
        cells = (
            row.arms[1], row.arms[0], turned(row.learning), turned(row.forgetting),
            turned(row.equal_learning), joint, area_text(areas.get(row.arms[1])), told(row),
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    remedies = {row.arms[1] for row in ranked}
    for arm in sorted({row.arms[0] for row in ranked} - remedies):
        empty = [formats.ABSENT] * 5
        rows.append(f"| {' | '.join([arm, *empty, area_text(areas.get(arm)), 'the plain arm'])} |")
    return rows


def scores(summary: Summary) -> list[str]:
    """A row for each rate of each arm: means over seeds, beside the base, and which chose it."""
    names = [*summary.measure.learning, *summary.forgetting_measures]
    tasks = [summary.task(name) for name in names]
    titles = [f"{task.title}, tuned minus base" for task in tasks]
    head = ["arm", "rate", "budget", "best for seeds", "validation loss", *titles]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for group in groups(summary):
        best = ", ".join(str(point.seed) for point in group.points if point.selected)
        cells = [
            group.arm, group.rate, formats.count(group.budget), best or formats.ABSENT,
            formats.value(group.value("validation_loss"), summary.task("validation_loss")),
            *(formats.change(group.change(task.name), task) for task in tasks),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def claims(judged: Judgement) -> list[str]:
    """A row for each claim that could be judged."""
    rows = ["| claim | joint | alone | effect |", "|---|---|---|---|"]
    for claim in judged.claims:
        if claim.p is not None:
            effect = formats.estimated(claim.effect) if claim.effect else formats.ABSENT
            said = f"{claim.statement} ({claim.source})"
            rows.append(f"| {said} | {claim.verdict} | {claim.alone} | {effect} |")
    return rows


def main() -> None:
    """Print a ranking and the scores of each setting, and the claims, judged over all of them."""
    if len(sys.argv) != 2:
        raise SystemExit((__doc__ or "").strip())
    store = SeriesStore(Path(sys.argv[1]))
    judged = read_file(Judgement, store.folder / CLAIMS_FILE)
    for name, study in (store.settings() or {store.folder.name: StudyStore(store.folder)}).items():
        alone = read_file(Judgement, study.folder / CLAIMS_FILE)
        tradeoff = read_file(Analysis, study.folder / ANALYSIS_FILE).tradeoff
        areas = {} if tradeoff is None else tradeoff.area
        print("\n".join([f"### {name}", "", alone.answer, "", *ranking(alone, areas), ""]))
        summary = read_file(Summary, study.folder / SUMMARY_FILE)
        print("\n".join([f"### Every rate of {name}", "", *scores(summary), ""]))
    print("\n".join(["### Claims", "", judged.answer, "", *claims(judged)]))


if __name__ == "__main__":
    main()
