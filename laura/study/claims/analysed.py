"""Claims from analysis.json: about the updates themselves, by their spectra, and on diversity.

Ranks are those at 90 % of the energy (Biderman et al. 2024, section 5). Where shapes are
compared, ranks are taken as a share of what iid noise of the same shape gives: a wide
matrix has a higher rank for no other reason than its shape. The matrices of a model are
all there are, no sample, so the error is that over seeds alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from laura.models.targets import GROUPS
from laura.results.schema import Analysis, DiversityRow, MatrixSpectra
from laura.results.statistics import MIN_ITEMS, TooThin, count, over_runs
from laura.results.units import budget_text
from laura.study.claims.settings import Kind, Setting
from laura.study.claims.verdicts import Statement

TIMES_LORA, USUAL_RANK = 10.0, 16


def full_is_high_rank(setting: Setting) -> list[Statement]:
    """Full's updates need at least ten times a usual LoRA's directions: log10(rank / 16) > 1.

    The paper says 10 to 100 times a usual LoRA rank. r = 16 is that rank whatever a recipe
    lists; a base whose matrices have fewer than 160 directions cannot speak.
    """
    by_seed = _last(setting)
    smallest = min(min(m.shape) for own in by_seed.values() for m in own)
    if TIMES_LORA * USUAL_RANK >= smallest:
        raise TooThin(
            f"ten times rank {USUAL_RANK} is more than the {smallest} directions a matrix of "
            "this base has; take a wider base"
        )
    logs = [
        fmean(math.log10(max(1.0, (m.rank_kept or 0)) / USUAL_RANK) for m in own)
        for own in by_seed.values()
    ]
    effect = over_runs(logs, _matrices(by_seed))
    what = f"log10 of the rank of full's updates over {USUAL_RANK}"
    return [Statement((setting.full().name,), what, effect, "log10", math.log10(TIMES_LORA))]


def rank_grows_with_data(setting: Setting) -> list[Statement]:
    """Rank of full's updates at the last budget minus that at the first, as a share of width."""
    full, by_budget = setting.full(), _spectra(setting)
    if len(by_budget) < 2:
        raise TooThin("spectra of fewer than two budgets")
    early, late = by_budget[min(by_budget)], by_budget[max(by_budget)]
    growth = [
        _mean_share(late[seed], _of_width) - _mean_share(early[seed], _of_width)
        for seed in sorted(early.keys() & late.keys())
    ]
    effect = over_runs(growth, _matrices(late))
    first, last = (budget_text(one(by_budget)) for one in (min, max))
    what = f"rank of {full.name}'s updates, {last} minus {first}"
    return [Statement((full.name,), what, effect, "share of width")]


def mlp_above_attention(setting: Setting) -> list[Statement]:
    """Rank of full's updates as a share of noise: mlp modules minus attention modules."""

    def difference(own: list[MatrixSpectra]) -> float:
        sides = [[m for m in own if m.module in GROUPS[g]] for g in ("mlp", "attention")]
        if not all(sides):
            raise TooThin("no spectra of both mlp and attention modules")
        return _mean_share(sides[0], _of_noise) - _mean_share(sides[1], _of_noise)

    return _once(setting, difference, "rank of updates in mlp minus attention")


def middle_layers_above_ends(setting: Setting) -> list[Statement]:
    """Rank of full's updates as a share of noise: middle layers minus the first and the last."""

    def difference(own: list[MatrixSpectra]) -> float:
        layers = sorted({m.layer for m in own if m.layer is not None})
        if len(layers) < 3:
            raise TooThin("fewer than three layers, so none is in the middle")
        ends = [m for m in own if m.layer in (layers[0], layers[-1])]
        middle = [m for m in own if m.layer in layers[1:-1]]
        return _mean_share(middle, _of_noise) - _mean_share(ends, _of_noise)

    return _once(setting, difference, "rank of updates in middle layers minus both ends")


def _once(
    setting: Setting, number: Callable[[list[MatrixSpectra]], float], what: str
) -> list[Statement]:
    by_seed = _last(setting)
    effect = over_runs([number(own) for own in by_seed.values()], _matrices(by_seed))
    return [Statement((setting.full().name,), what, effect, "share of noise rank")]


def _of_noise(matrix: MatrixSpectra) -> float | None:
    return (matrix.rank_kept or 0) / matrix.noise_kept if matrix.noise_kept else None


def _of_width(matrix: MatrixSpectra) -> float:
    return (matrix.rank_kept or 0) / min(matrix.shape)


def _mean_share(
    matrices: list[MatrixSpectra], share: Callable[[MatrixSpectra], float | None]
) -> float:
    """Mean share of the matrices that have one.

    Raises:
        TooThin: none has, since no noise of its shape stands beside it.
    """
    found = [value for matrix in matrices if (value := share(matrix)) is not None]
    if not found:
        raise TooThin("no rank of noise beside the spectra; make them again")
    return fmean(found)


def _matrices(by_seed: dict[int, list[MatrixSpectra]]) -> int:
    return min(len(own) for own in by_seed.values())


def _last(setting: Setting) -> dict[int, list[MatrixSpectra]]:
    by_budget = _spectra(setting)
    return by_budget[max(by_budget)]


def _spectra(setting: Setting) -> dict[float, dict[int, list[MatrixSpectra]]]:
    """Budget to seed to matrices of plain full finetuning at its best rate.

    Raises:
        TooThin: there are none; a matrix whose update was not finite is left out.
    """
    full = setting.full()
    best = setting.evidence.best.get(full.name, {})
    found: dict[float, dict[int, list[MatrixSpectra]]] = {}
    for one in setting.analysis.spectra if setting.analysis else []:
        if one.arm == full.name and one.learning_rate == best.get(one.seed):
            linear = [
                m for m in one.matrices if m.module in GROUPS["all"] and m.rank_kept is not None
            ]
            if linear:
                found.setdefault(one.budget, {})[one.seed] = linear
    if not found:
        raise TooThin("no spectra of full finetuning; run with analysis.spectra")
    return found


# ----- diversity -----


def keeps_diversity(setting: Setting) -> list[Statement]:
    """Distinct outputs a prompt, LoRA minus full, from the same number of samples, tuned.

    Differences of seeds from `diversity`. The error over prompts is the paired one of
    `diversity_differences` where it is there (it holds seeds too, so it is too large),
    else both arms' errors added.
    """
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
