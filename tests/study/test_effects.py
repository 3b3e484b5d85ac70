"""Effects against plain arrays and scipy, and how often claims are wrong when nothing is true."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from laura.results.task_result import TaskResult, summarise
from laura.study.claims.outcomes import (
    all_above_mlp_above_attention,
    forgets_less,
    learns_less_in_code,
)
from laura.study.claims.pace import needs_more_epochs
from laura.study.claims.regimes import narrows_the_gap_in_math
from laura.study.claims.settings import FORGETTING, Setting
from laura.study.claims.verdicts import holm
from laura.study.effects import Effect, Part, Term, contrast, mean_effect
from tests.study.fabricated import KEEP, LEARN, METRIC, World, math_and_code, targets


def test_an_effect_is_the_paired_difference_with_both_errors() -> None:
    setting = Setting("s", World({}, items=120).evidence(4))
    arms = setting.lora(), setting.full()
    effect = setting.difference(*arms, FORGETTING, 1)
    sides = [[setting.points(arm, 1)[seed] for seed in (0, 1, 2)] for arm in arms]
    # Shape (task, seed, item): the plain array that the definition is about.
    d = np.array([
        [[a[METRIC[t]] - b[METRIC[t]] for a, b in zip(p.results[t].items, q.results[t].items,
                                                      strict=True)]
         for p, q in zip(*sides, strict=True)]
        for t in KEEP
    ], dtype=float)  # fmt: skip
    assert effect.value == pytest.approx(d.mean())
    seeds = d.mean(axis=(0, 2)).var(ddof=1) / 3
    # Each task counts half; two pseudo-items differ by a whole point (Bonett and Price 2012).
    padded = [np.concatenate([d[t].mean(axis=0), [1, -1]]) for t in (0, 1)]
    items = [own.var() / 122 / 4 for own in padded]
    assert effect.stderr == pytest.approx(math.sqrt(seeds + sum(items)))
    freedom = (seeds + sum(items)) ** 2 / (seeds**2 / 2 + sum(v**2 for v in items) / 119)
    assert effect.freedom == pytest.approx(freedom)
    low, high = stats.t.interval(0.95, freedom, effect.value, effect.stderr)
    assert effect.interval() == pytest.approx((low, high))
    assert effect.chance_below(0.1) == pytest.approx(
        stats.t.sf((effect.value - 0.1) / effect.stderr, freedom)
    )
    assert (effect.n, effect.seeds) == (240, 3)


def test_an_effect_on_losses_weighs_documents_by_their_tokens() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(3, 40, 60)
    nats = generator.uniform(0.5, 3, (2, 3, 60)) * tokens  # (side, seed, document)

    def result(own: Any) -> TaskResult:
        items = [
            {"index": i, "nats": float(n), "tokens": int(t)}
            for i, (n, t) in enumerate(zip(own, tokens, strict=True))
        ]
        metrics = {"nats_per_token": summarise(items, "nats_per_token", False)}
        return TaskResult("target_loss", "1", "m", 60, metrics, items)

    terms = [
        Term(weight, {seed: {"loss": result(nats[side, seed])} for seed in range(3)},
             {"loss": ("nats_per_token", -1.0)})
        for side, weight in ((0, 1.0), (1, -1.0))
    ]  # fmt: skip
    effect = contrast(terms)
    losses = nats.sum(axis=-1) / tokens.sum()
    by_seed = losses[1] - losses[0]
    assert effect.value == pytest.approx(by_seed.mean())
    # Cochran 1977, section 6.4: residuals of the ratio, seeds averaged document by document.
    residuals = (nats - losses[..., None] * tokens) / tokens.mean()
    items = (residuals[1] - residuals[0]).mean(axis=0).var(ddof=1) / 60
    assert effect.stderr == pytest.approx(math.sqrt(by_seed.var(ddof=1) / 3 + items))


def test_errors_over_items_add_whole_when_settings_are_averaged() -> None:
    one = Effect(1.0, (Part("seeds", 0.04, 2), Part("items", 0.09, 99)), 100, 3)
    two = Effect(3.0, (Part("seeds", 0.04, 2), Part("items", 0.09, 99)), 100, 3)
    both = mean_effect([one, two])
    assert both.value == 2 and both.n == 200
    # Seeds are independent (variance halves), items may be the same ones (it does not).
    assert both.stderr**2 == pytest.approx(0.02 + 0.09)


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


# How often a verdict is wrong when nothing is true, and right when something is.


def share_judged(draws: int, world: Callable[[], World], look: Any) -> Counter[str]:
    return Counter(look([Setting("s", world().evidence(i))]).verdict for i in range(draws))


@pytest.mark.parametrize(
    ("seed_spread", "item_spread"), [(0.0, 0.0), (0.1, 0.0), (0.03, 0.15), (0.0, 0.3)]
)
@pytest.mark.parametrize("look", [learns_less_in_code, forgets_less])
def test_false_verdicts_are_no_more_than_nominal(
    seed_spread: float, item_spread: float, look: Any
) -> None:
    def null() -> World:
        return World({LEARN: 0.5}, items=80, seed_spread=seed_spread, item_spread=item_spread)

    draws = 100
    found = share_judged(draws, null, look)
    # Each side is wrong 2.5 % of the time at most: 99.9 % of such studies stay below this.
    most = stats.binom.ppf(0.999, draws, 0.025)
    assert found["supported"] <= most and found["contradicted"] <= most


def test_peaks_at_the_same_budget_are_seldom_told_apart() -> None:
    def null() -> World:
        truth = {(LEARN, arm, b): v for arm in ("full", "lora")
                 for b, v in ((1, 0.5), (2, 0.55), (4, 0.55), (8, 0.5))}  # fmt: skip
        return World(truth, budgets=(1, 2, 4, 8), items=80, seed_spread=0.03)

    draws = 100
    found = share_judged(draws, null, needs_more_epochs)
    most = stats.binom.ppf(0.999, draws, 0.025)
    assert found["supported"] <= most and found["contradicted"] <= most


@pytest.mark.slow
def test_several_settings_and_parts_are_not_wrong_more_often() -> None:
    """A ratio over two settings, the mean of two settings, and a statement of two parts."""
    draws = 60
    found: dict[str, Counter[str]] = {name: Counter() for name in ("ratio", "mean", "parts")}
    for i in range(draws):
        pair = math_and_code(0.6, 0.6)
        for world in pair:
            world.items = 150
        alike = [World({}, items=80, seed_spread=0.05) for _ in range(2)]
        both = [[Setting(f"s{k}", w.evidence(1000 * k + i)) for k, w in enumerate(worlds)]
                for worlds in (pair, alike, [targets((0.5, 0.5, 0.5))])]  # fmt: skip
        looks = (narrows_the_gap_in_math, forgets_less, all_above_mlp_above_attention)
        for name, look, settings in zip(found, looks, both, strict=True):
            found[name][look(settings).verdict] += 1
    most = stats.binom.ppf(0.999, draws, 0.025)
    for counts in found.values():
        assert counts["supported"] <= most and counts["contradicted"] <= most


def test_a_real_difference_is_found() -> None:
    def real() -> World:
        return World({(LEARN, "full"): 0.6, (LEARN, "lora"): 0.4}, items=200, item_spread=0.1)

    assert share_judged(40, real, learns_less_in_code)["supported"] >= 36
