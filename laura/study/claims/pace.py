"""Claims about rates and durations, which are read off lists: the best rate, the peak, the pace.

A value read off a list is known only to the list's step; its error (step² / 12, in logs)
does not shrink with seeds and is part of every interval here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laura.results.statistics import (
    MIN_ITEMS,
    MIN_SEEDS,
    Contrast,
    TooThin,
    Variance,
    count,
    over_runs,
)
from laura.study.claims.capability import learnt, tuned
from laura.study.claims.settings import LEARNING, Kind, Setting
from laura.study.claims.verdicts import Statement

TEN_TIMES = (0.5, 1.5)  # log10: what rounds to one order of magnitude, 3.2 to 32 times
DRAWS = 2000
HALF_WAY = 0.5  # of the learning that both arms reach, where their pace is compared


def ten_times_the_rate(setting: Setting) -> list[Statement]:
    """log10 of LoRA's best rate over full's lies within half an order of magnitude of one.

    Each arm's best rate of each seed has the lowest validation loss at the largest budget.
    Neither list may decide. So a best rate counts only where it is surely inside its list:
    the loss at both ends is above that at the best, where the best is chosen on the *other*
    seeds (t over seeds, 95 %). From lists of pure noise no rate is surely best.
    """
    full, lora = setting.full(), setting.lora()
    ratios, steps = _rate_ratios(setting, lora, full)
    effect = over_runs(ratios, len(ratios)).with_grid(steps)
    what = f"log10 of {lora.name}'s best rate over {full.name}'s"
    return [Statement((lora.name, full.name), what, effect, "log10", *TEN_TIMES)]


def more_sensitive_to_the_rate(setting: Setting) -> list[Statement]:
    """LoRA loses more learning a step off its best rate than full does; equal steps of both.

    Of each seed the learning at its best rate minus the mean of that at the two neighbours in
    the list, LoRA's minus full's. The best rate is chosen on validation, learning is told on
    the test's items. Lists of other steps, or a best rate at an end, cannot be compared.
    """
    full, lora = setting.full(), setting.lora()
    tuned(setting, full, lora)
    last = setting.common_budget(full, lora)
    learnt(setting, last, full, lora)
    terms, ratios = [], []
    seeds = set(setting.points(full, last)) & set(setting.points(lora, last))
    for arm, sign in ((lora, 1.0), (full, -1.0)):
        beside, steps = _neighbours(setting, arm, last, seeds)
        ratios += steps
        terms.append((sign, setting.arm_scores(arm, last, LEARNING)))
        for side in beside:
            own = {s: p.results for s, p in side.items()}
            terms.append((-sign / 2, setting.scores(own, LEARNING, arm.name)))
    if max(ratios) > 1.1 * min(ratios):
        raise TooThin("the lists of rates have other steps, so a step off cannot be compared")
    what = f"learning lost a step off the best rate, {lora.name} minus {full.name}"
    return [Statement((lora.name, full.name), what, setting.contrast(terms),
                      setting.unit(LEARNING))]  # fmt: skip


def needs_more_epochs(setting: Setting) -> list[Statement]:
    """LoRA's learning peaks later than full's: log2 of its own best budget over full's own.

    A seed in which both are best at the largest budget has passed neither peak and says
    nothing. The error over items is that of a bootstrap that draws the items anew and looks
    for the peaks again; seeds and the list's step are added to it.
    """
    full, lora = setting.full(), setting.lora()
    if len(setting.budgets) < 3:
        raise TooThin("fewer than three budget points, so no peak can be seen")
    tuned(setting, full, lora)
    effect = _later_peak(setting, lora, full)
    what = f"log2 of {lora.name}'s best budget over {full.name}'s"
    return [Statement((lora.name, full.name), what, effect, "log2")]


def less_sample_efficient_in_math(setting: Setting) -> list[Statement]:
    """In mathematics LoRA needs more training than full for the same learning, tuned.

    log2 of the budget at which LoRA reaches half of the gain that both reach, over full's;
    between neighbouring budgets the logarithm of the budget is interpolated. A seed in which
    either is above that level at the first budget already says nothing.
    """
    full, lora = setting.full(), setting.lora()
    tuned(setting, full, lora)
    (base,) = setting.base_scores(LEARNING).tables.values()
    start = float(base[0].mean())
    curves = [
        {seed: [float(items.mean()) - start for items in own] for seed, own in found.items()}
        for found in (_curves(setting, arm) for arm in (lora, full))
    ]
    values = []
    for seed in sorted(curves[0].keys() & curves[1].keys()):
        pair = [curve[seed] for curve in curves]
        level = HALF_WAY * min(max(gains) for gains in pair)
        needed = [_reached(gains, level, setting.budgets) for gains in pair]
        if level > 0 and needed[0] is not None and needed[1] is not None:
            values.append(needed[0] - needed[1])
    if len(values) < MIN_SEEDS:
        raise TooThin(
            f"both arms cross half of the learning they share, after the first budget, with "
            f"{count(len(values), 'seed')}; {MIN_SEEDS} are needed: add smaller budgets"
        )
    effect = over_runs(values, len(values))
    what = f"log2 of the budget {lora.name} needs over {full.name}'s"
    return [Statement((lora.name, full.name), what, effect, "log2")]


def _rate_ratios(setting: Setting, lora: Kind, full: Kind) -> tuple[list[float], tuple[float, ...]]:
    """log10 ratios of the best rates, one a seed, and the steps of the lists."""
    tuned(setting, lora, full)
    best, steps = [], []
    for arm in (lora, full):
        table = _losses(setting, arm)
        rates = setting.evidence.rates(arm.name)
        _surely_inside(arm, rates, table)
        best.append({seed: min((loss, rate) for rate, loss in own.items())[1]
                     for seed, own in table.items()})  # fmt: skip
        steps.append(max(math.log10(b / a) for a, b in itertools.pairwise(rates)))
    seeds = sorted(best[0].keys() & best[1].keys())
    if len(seeds) < MIN_SEEDS:
        raise TooThin(f"{count(len(seeds), 'seed')} with whole lists of both; {MIN_SEEDS} needed")
    return [math.log10(best[0][s] / best[1][s]) for s in seeds], tuple(steps)


def _losses(setting: Setting, arm: Kind) -> dict[int, dict[float, float]]:
    """Seed to rate to validation loss at the largest budget, for seeds whose list is whole.

    A rate that diverged has no loss, and counts as worse than all.
    """
    last = max(setting.budgets)
    found: dict[int, dict[float, float]] = {}
    for (rate, budget), by_seed in setting.configurations(arm).items():
        for seed, point in by_seed.items():
            if budget == last and point.validation is not None:
                found.setdefault(seed, {})[rate] = point.validation
    whole = setting.evidence.best.get(arm.name, {})
    return {seed: own for seed, own in found.items() if seed in whole}


def _surely_inside(
    arm: Kind, rates: Sequence[float], table: Mapping[int, Mapping[float, float]]
) -> None:
    """Both ends of a list are worse than the best of the other seeds, surely.

    Raises:
        TooThin: fewer than three seeds, or an end may be as good.
    """
    if len(table) < MIN_SEEDS:
        raise TooThin(f"{arm.name}: {count(len(table), 'whole list')} of rates; "
                      f"{MIN_SEEDS} are needed")  # fmt: skip
    for end in (rates[0], rates[-1]):
        worse = []
        for seed, own in table.items():
            others = [losses for other, losses in table.items() if other != seed]
            best = min(own, key=lambda r: fmean(o.get(r, math.inf) for o in others))
            if end in own:
                worse.append(own[end] - own[best])
        if len(worse) < len(table):
            continue  # it diverged: no end is surer
        if over_runs(worse, len(worse)).interval()[0] <= 0:
            raise TooThin(
                f"{arm.name}: the rate {end:g} at the end of its list may be as good as its best "
                "by validation; widen the list, or add seeds"
            )


def _neighbours(
    setting: Setting, arm: Kind, budget: float, seeds: set[int]
) -> tuple[list[dict[int, Any]], list[float]]:
    """The points one step below and above each seed's best rate, and the steps' ratios."""
    rates = setting.evidence.rates(arm.name)
    points = setting.configurations(arm)
    beside: list[dict[int, Any]] = [{}, {}]
    ratios = []
    for seed in seeds:
        place = rates.index(setting.evidence.best[arm.name][seed])
        if place in (0, len(rates) - 1):
            raise TooThin(f"the best rate of {arm.name} is at the end of its list")
        for side, other in enumerate((place - 1, place + 1)):
            own = points.get((rates[other], budget), {}).get(seed)
            if own is None:
                raise TooThin(f"{arm.name} at {rates[other]:g} diverged or was not measured")
            beside[side][seed] = own
        ratios += [rates[place] / rates[place - 1], rates[place + 1] / rates[place]]
    return beside, ratios


def _reached(gains: Sequence[float], level: float, budgets: Sequence[float]) -> float | None:
    """log2 of the budget at which a curve first crosses a level; None if at once or never."""
    if gains[0] >= level:
        return None
    for (a, low), (b, high) in itertools.pairwise(zip(budgets, gains, strict=True)):
        if low < level <= high:
            share = (level - low) / (high - low)
            return math.log2(a) + share * (math.log2(b) - math.log2(a))
    return None


def _later_peak(setting: Setting, lora: Kind, full: Kind) -> Contrast:
    budgets = setting.budgets
    tables = [_curves(setting, arm) for arm in (lora, full)]
    seeds = sorted(tables[0].keys() & tables[1].keys())
    if not seeds:
        raise TooThin("no seed with learning measured at every budget of both arms")
    # Shape (arm, seed, budget, item).
    scores = np.array([[table[seed] for seed in seeds] for table in tables])
    n, logs = scores.shape[-1], np.log2(np.array(budgets))
    if n < MIN_ITEMS:
        raise TooThin(f"{count(n, 'item')} measured; {MIN_ITEMS} are needed")
    peaks = scores.mean(axis=-1).argmax(axis=-1)
    seen = ~(peaks == len(budgets) - 1).all(axis=0)
    if not seen.any():
        raise TooThin("both arms are best at the largest budget: neither has passed its peak")
    scores, peaks = scores[:, seen], peaks[:, seen]
    values = logs[peaks[0]] - logs[peaks[1]]
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS) / n
    redrawn = logs[np.einsum("asbi,di->dasb", scores, draws, optimize=True).argmax(axis=-1)]
    variance = float((redrawn[:, 0] - redrawn[:, 1]).mean(axis=-1).var(ddof=1))
    effect = over_runs([float(value) for value in values], n)
    parts = (*effect.parts, Variance("items", variance, math.inf))
    step = max(math.log2(b / a) for a, b in itertools.pairwise(budgets))
    return Contrast(effect.value, parts, n, effect.seeds).with_grid([step, step])


def _curves(setting: Setting, arm: Kind) -> dict[int, NDArray[Any]]:
    """Seed to learning by (budget, item); whole curves only."""
    found: dict[int, list[NDArray[Any]]] = {}
    items = setting.base_scores(LEARNING).items
    for budget in setting.budgets:
        if setting.points(arm, budget):
            own = setting.arm_scores(arm, budget, LEARNING)
            if own.items != items:
                raise TooThin(f"{arm.name} and the base were measured on different items")
            (table,) = own.tables.values()
            for place, seed in enumerate(own.seeds):
                found.setdefault(seed, []).append(table[place])
    return {s: np.stack(rows) for s, rows in found.items() if len(rows) == len(setting.budgets)}
