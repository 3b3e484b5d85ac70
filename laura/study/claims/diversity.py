"""The claim on diversity, from the samples that analysis.json counts."""

from __future__ import annotations

from collections.abc import Sequence

from laura.results.schema import Analysis, DiversityRow
from laura.results.statistics import MIN_ITEMS, TooThin, count, over_runs
from laura.study.claims.settings import Kind, Setting
from laura.study.claims.verdicts import Finding, Statement, look_at_each


def keeps_diversity(settings: Sequence[Setting]) -> Finding:
    """Distinct outputs a prompt, LoRA minus full, from the same number of samples, tuned.

    Differences of seeds from `diversity`. The error over prompts is the paired one of
    `diversity_differences` where it is there (it holds seeds too, so it is too large),
    else both arms' errors added.
    """

    def look(setting: Setting) -> list[Statement]:
        full, lora = setting.full(), setting.lora()
        rows = setting.analysis.diversity if setting.analysis else []
        if setting.analysis is None or not rows:
            raise TooThin("no samples to count distinct outputs in; add measure.extras")
        # The first extra that both arms have, at the largest budget both were sampled at.
        for extra in dict.fromkeys(row.extra for row in rows):
            own = [row for row in rows if row.extra == extra]
            sides = [_by_budget(setting, arm, own) for arm in (lora, full)]
            common = sides[0].keys() & sides[1].keys()
            if common:
                budget = max(common)
                paired = _paired_error(setting.analysis, extra, {lora.name, full.name}, budget)
                return [_distinct(lora, full, sides[0][budget], sides[1][budget], paired)]
        raise TooThin("no samples of both arms at one budget")

    return look_at_each(settings, look)


def _by_budget(
    setting: Setting, arm: Kind, rows: Sequence[DiversityRow]
) -> dict[float, dict[int, DiversityRow]]:
    best = setting.evidence.best.get(arm.name, {})
    found: dict[float, dict[int, DiversityRow]] = {}
    for row in rows:
        if row.arm != arm.name or row.seed is None or row.budget is None or row.distinct is None:
            continue
        if row.learning_rate == best.get(row.seed):
            found.setdefault(row.budget, {})[row.seed] = row
    return found


def _paired_error(analysis: Analysis, extra: str, arms: set[str], budget: float) -> float | None:
    """Standard error of the difference of distinct outputs, paired by prompt."""
    for row in analysis.diversity_differences:
        if (row.extra, row.measure, row.budget) == (extra, "distinct", budget):
            if set(row.arms) == arms:
                return row.stderr
    return None


def _distinct(
    lora: Kind,
    full: Kind,
    first: dict[int, DiversityRow],
    second: dict[int, DiversityRow],
    paired: float | None,
) -> Statement:
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise TooThin("the arms were sampled with different seeds")
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if any(a.samples != b.samples for a, b in pairs):
        raise TooThin("the arms were sampled a different number of times a prompt")
    counts = [(a.distinct, b.distinct) for a, b in pairs if a.distinct and b.distinct]
    n = min(one.n for pair in counts for one in pair)
    if n < MIN_ITEMS:
        raise TooThin(f"{count(n, 'prompt')} sampled; {MIN_ITEMS} are needed")
    values = [a.value - b.value for a, b in counts]
    squares = [one.stderr**2 for pair in counts for one in pair]
    variance = sum(squares) / len(pairs) if paired is None else paired**2
    effect = over_runs(values, n, variance)
    what = f"distinct outputs a prompt of {lora.name} minus {full.name}"
    return Statement((lora.name, full.name), what, effect, f"of {pairs[0][0].samples}")
