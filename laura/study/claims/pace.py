"""Claims about rates and durations, which are read off lists: the rate that is best, the peak.

A value read off a list is known only to the list's step; its error (step^2 / 12, in logs)
does not shrink with seeds and is part of every interval here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from laura.study.claims.settings import LEARNING, Kind, Setting
from laura.study.claims.verdicts import TOO_THIN, Finding, Piece, judge, look_at_each, thin_row
from laura.study.effects import MIN_ITEMS, Effect, Part, TooThin, count, linearised, over_seeds
from laura.study.measures import leading

TEN_TIMES = (0.5, 1.5)  # log10: what rounds to one order of magnitude, 3.2 to 32 times
DRAWS = 2000


def ten_times_the_rate(settings: Sequence[Setting]) -> Finding:
    """log10 of LoRA's best rate over full's lies within half an order of magnitude of one.

    The best rate has the lowest validation loss at the largest budget, for each seed whose
    whole list was run with both arms. Such lists of all settings are taken together as
    independent (usually one seed a setting). A best rate at the end of its list is not
    known to be best, and its list is left out.
    """
    logs: list[float] = []
    rows: list[dict[str, Any]] = []
    names: tuple[str, ...] = ()
    spacing = (0.0, 0.0)
    for setting in settings:
        try:
            full, lora = setting.full(), setting.lora()
            own, steps = _rate_ratios(setting, lora, full)
        except TooThin as reason:
            rows.append(thin_row(setting.name, str(reason)))
            continue
        logs += own
        spacing = (max(spacing[0], steps[0]), max(spacing[1], steps[1]))
        names = (lora.name, full.name)
        value = math.fsum(own) / len(own)
        told = f"log10 of {lora.name}'s best rate over {full.name}'s"
        row = thin_row(setting.name, f"{count(len(own), 'whole list')} of rates")
        rows.append({**row, "arms": list(names), "what": told, "value": value, "unit": "log10",
                     "seeds": len(own)})  # fmt: skip
    if not logs:
        return Finding(TOO_THIN, "; ".join(dict.fromkeys(r["reason"] for r in rows)), evidence=rows)
    try:
        effect = over_seeds(logs, len(logs)).with_grid(spacing)
    except TooThin:
        few = f"{count(len(logs), 'whole list')} of rates (seed and setting); 3 are needed"
        return Finding(TOO_THIN, few, evidence=rows)
    low, high = TEN_TIMES
    piece = Piece(names, "log10 of LoRA's best rate over full's", effect, "log10", low, high)
    found = judge([[piece]])
    return Finding(found.verdict, found.reason, found.p, found.toward, effect, "log10", rows)


def needs_more_epochs(settings: Sequence[Setting]) -> Finding:
    """LoRA's learning peaks later than full's: log2 of its own best budget over full's own.

    A seed in which both are best at the largest budget has passed neither peak and says
    nothing. The error over items is that of a bootstrap that draws the items anew and looks
    for the peaks again; seeds and the list's step are added to it.
    """

    def look(setting: Setting) -> list[Piece]:
        full, lora = setting.full(), setting.lora()
        if len(setting.budgets) < 3:
            raise TooThin("fewer than three budget points, so no peak can be seen")
        effect = _later_peak(setting, lora, full)
        what = f"log2 of {lora.name}'s best budget over {full.name}'s"
        return [Piece((lora.name, full.name), what, effect, "log2")]

    return look_at_each(settings, look)


def _rate_ratios(setting: Setting, lora: Kind, full: Kind) -> tuple[list[float], tuple[float, ...]]:
    """log10 ratios of the best rates, one a seed with whole lists, and the lists' steps."""
    lists = [(arm, sorted(_rates(setting, arm))) for arm in (lora, full)]
    if min(len(rates) for _, rates in lists) < 3:
        raise TooThin("an arm was tried at fewer than three rates, so none is inside its list")
    ratios, at_end = [], False
    for seed in setting.evidence.recipe.seeds:
        best = [_best_rate(setting, arm, rates, seed) for arm, rates in lists]
        if best[0] is None or best[1] is None:
            continue
        inside = all(rate not in (r[0], r[-1]) for rate, (_, r) in zip(best, lists, strict=True))
        if inside:
            ratios.append(math.log10(best[0] / best[1]))
        at_end = at_end or not inside
    if not ratios and at_end:
        raise TooThin("a best rate is at the end of its list; widen the list")
    if not ratios:
        raise TooThin("no seed was run at every rate of both arms")
    steps = (max(math.log10(b / a) for a, b in itertools.pairwise(rates)) for _, rates in lists)
    return ratios, tuple(steps)


def _best_rate(setting: Setting, arm: Kind, rates: Sequence[float], seed: int) -> float | None:
    """The rate of lowest validation loss with a seed; None if not all rates were run.

    A rate that diverged has no loss, and counts as worse than all.
    """
    last = max(setting.budgets)
    losses = {
        p.learning_rate: p.validation
        for p in setting.evidence.points
        if (p.arm, p.seed, p.budget) == (arm.name, seed, last) and p.validation is not None
    }
    diverged = {
        run.learning_rate
        for run in setting.evidence.runs
        if (run.arm, run.seed, run.state) == (arm.name, seed, "diverged")
    }
    if not losses or not set(rates) <= losses.keys() | diverged:
        return None
    return min((loss, rate) for rate, loss in losses.items())[1]


def _rates(setting: Setting, arm: Kind) -> set[float]:
    """The rates of an arm that were run with the first seed, whoever proposed them."""
    first = setting.evidence.recipe.seeds[0]
    return {
        p.learning_rate for p in setting.evidence.points if p.arm == arm.name and p.seed == first
    } | {
        run.learning_rate
        for run in setting.evidence.runs
        if run.arm == arm.name and run.seed == first
    }


def _later_peak(setting: Setting, lora: Kind, full: Kind) -> Effect:
    import numpy as np

    (task,) = setting.tasks(LEARNING)
    budgets = setting.budgets
    tables = [_curve(setting, arm, task) for arm in (lora, full)]
    seeds = sorted(tables[0].keys() & tables[1].keys())
    if not seeds:
        raise TooThin(f"no seed with {task} at every budget of both arms")
    counts = {row.shape for table in tables for seed in seeds for row in [np.array(table[seed])]}
    if len(counts) > 1:
        raise TooThin(f"{task} was measured on different items; measure both on the same")
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
    redrawn = logs[np.einsum("asbi,di->dasb", scores, draws).argmax(axis=-1)]
    variance = float((redrawn[:, 0] - redrawn[:, 1]).mean(axis=-1).var(ddof=1))
    effect = over_seeds([float(value) for value in values], n)
    effect = Effect(effect.value, (*effect.parts, Part("items", variance, n - 1)), n, effect.seeds)
    step = max(math.log2(b / a) for a, b in itertools.pairwise(budgets))
    return effect.with_grid([step, step])


def _curve(setting: Setting, arm: Kind, task: str) -> dict[int, list[list[float]]]:
    """Seed to one list of item values a budget, higher better; whole curves only."""
    curves: dict[int, list[list[float]]] = {}
    for budget in setting.budgets:
        for seed, point in setting.points(arm, budget).items():
            result = point.results.get(task)
            if result is not None:
                metric = leading(result)
                sign = 1.0 if result.metrics[metric].higher_is_better else -1.0
                values = linearised(result, metric)
                own = [sign * values[index] for index in sorted(values)]
                curves.setdefault(seed, []).append(own)
    return {
        seed: curve
        for seed, curve in curves.items()
        if len(curve) == len(setting.budgets) and len({len(values) for values in curve}) == 1
    }
