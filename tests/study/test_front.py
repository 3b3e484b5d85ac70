"""Forgetting at equal learning against loops over levels, halves and subsets."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from scipy import stats

from laura.results.statistics import TooThin
from laura.study.claims.front import LEVELS, SUBSETS, equal_learning
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Setting
from tests.study.fabricated import FULL, LORA, PAIR, setting

LONG = {**LORA, "learning_rates": [2.5e-4, 3.5e-4, 5e-4, 7e-4, 1e-3]}


def points_of(made: Setting, arm: Kind, seed: int) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """What every item learnt, and lost of each task, at every rate and budget of a seed."""
    found = []
    for budget in made.budgets:
        for rate in made.evidence.rates(arm.name):
            (point,) = [p for p in made.evidence.points
                        if (p.arm, p.learning_rate, p.budget, p.seed)
                        == (arm.name, rate, budget, seed)]  # fmt: skip
            sides = []
            for measure in (LEARNING, FORGETTING):
                own = made.scores({seed: point.results}, measure, "").tables
                base = made.base_scores(measure).tables
                sides.append([own[task][0] - base[task][0] for task in own])
            found.append((sides[0][0], [-table for table in sides[1]]))
    return found


def naive(made: Setting, first: Kind, second: Kind) -> list[float]:
    """The difference of the fronts, one a seed."""
    found = []
    for seed in made.evidence.recipe.seeds:
        sides = [points_of(made, arm, seed) for arm in (first, second)]
        counts = [len(side) for side in sides]
        least = min(counts)
        draw = np.random.default_rng(zlib.crc32(f"{first.name}/{second.name}".encode()))
        subsets = [
            [draw.choice(n, least, replace=False) if n > least else range(n)
             for _ in range(SUBSETS if counts[0] != counts[1] else 1)]
            for n in counts
        ]  # fmt: skip
        by_half = []
        for half in (0, 1):
            told = []
            for chosen in zip(*subsets, strict=True):
                gains = [[sides[s][p][0][half::2].mean() for p in chosen[s]] for s in (0, 1)]
                low = max(0.0, min(gains[0]), min(gains[1]))
                high = min(max(gains[0]), max(gains[1]))
                if high < low or (high == low and high <= 0):
                    continue
                for step in range(LEVELS):
                    level = low + (high - low) * (step + 0.5) / LEVELS
                    lost = []
                    for s in (0, 1):
                        able = [p for p, gain in zip(chosen[s], gains[s], strict=True)
                                if gain >= level]  # fmt: skip
                        best = min(
                            able, key=lambda p: sum(own[half::2].mean() for own in sides[s][p][1])
                        )
                        # Chosen on one half of the items, told on the other.
                        tasks = [own[1 - half :: 2].mean() for own in sides[s][best][1]]
                        lost.append(sum(tasks) / len(tasks))
                    told.append(lost[0] - lost[1])
            by_half.append(np.mean(told))
        found.append(float(np.mean(by_half)))
    return found


@pytest.mark.parametrize("lora", [LORA, LONG])
def test_it_is_the_loop_over_levels_halves_and_subsets(lora: dict[str, Any]) -> None:
    arms = {"full": FULL, "lora": lora}
    losses = {"lora": np.linspace(0.34, 0.3, 5)} if lora is LONG else None
    grown = lambda place, budget: 0.2 + 0.1 * place + 0.1 * budget  # noqa: E731
    kept = {"full": lambda place, budget: 0.8 - 0.1 * place, "lora": lambda place, budget: 0.7}
    made = setting({"full": grown, "lora": grown}, kept, arms=arms, items=60, luck=0.03,
                   validation=losses, own={"seeds": [0, 1, 2, 3], "budgets": (1, 2)})  # fmt: skip
    found = equal_learning(made, made.full(), made.lora())
    wanted = naive(made, made.full(), made.lora())
    assert found.difference.value == pytest.approx(np.mean(wanted), abs=1e-9)
    seeds = next(part for part in found.difference.parts if part.source == "seeds")
    assert seeds.variance == pytest.approx(np.var(wanted, ddof=1) / 4)
    assert (found.difference.n, found.difference.seeds) == (120, 4)


def test_swapped_arms_are_the_difference_turned_round() -> None:
    made = setting({"full": 0.7, "lora": 0.6}, {"full": 0.5, "lora": 0.7})
    one = equal_learning(made, made.full(), made.lora())
    other = equal_learning(made, made.lora(), made.full())
    assert one.difference.value == pytest.approx(-other.difference.value)
    assert one.difference.stderr == pytest.approx(other.difference.stderr)
    assert one.levels == pytest.approx(other.levels)


def test_the_truth_at_equal_learning_is_found_though_the_tuned_rates_tell_another() -> None:
    """Both arms are the same curve; validation picks the costly rate of one of them."""
    curve = lambda place, budget: (0.4, 0.6, 0.7)[place]  # noqa: E731
    kept = lambda place, budget: (0.8, 0.7, 0.4)[place]  # noqa: E731
    losses = {"full": (0.36, 0.34, 0.30), "lora": (0.36, 0.30, 0.34)}
    values = []
    for number in range(15):
        made = setting(dict.fromkeys(PAIR, curve), dict.fromkeys(PAIR, kept), validation=losses,
                       number=number, own={"budgets": (1,)})  # fmt: skip
        tuned = made.difference(made.lora(), made.full(), FORGETTING, 1)
        assert tuned.interval()[0] > 0.1
        values.append(equal_learning(made, made.full(), made.lora()).difference.value)
    assert abs(stats.ttest_1samp(values, 0.0).statistic) < stats.t.ppf(0.9995, 14)


def test_more_points_of_pure_noise_win_no_more_often() -> None:
    """Four points against twelve: forgetting at all of them is the same but for luck."""
    flat = lambda place, budget: 0.6  # noqa: E731
    rates = [1e-4 * 1.3**place for place in range(12)]
    arms = {"few": {**FULL, "learning_rates": rates[:4]},
            "many": {**LORA, "learning_rates": rates}}  # fmt: skip
    losses = {"few": [0.3] * 4, "many": [0.3] * 12}
    values = []
    for number in range(100):
        made = setting(dict.fromkeys(arms, flat), dict.fromkeys(arms, flat), arms=arms,
                       validation=losses, number=number, luck=0.04, items=60, hardness=0.0,
                       own={"seeds": list(range(6)), "budgets": (1,),
                            "forgetting": ("winogrande",)})  # fmt: skip
        try:
            values.append(equal_learning(made, made.arms[0], made.arms[1]).difference.value)
        except TooThin:
            continue  # too few seeds have a level in common
    assert len(values) > 80
    # Without halves and subsets of equal size the one with more points gains 4 points here.
    assert abs(stats.ttest_1samp(values, 0.0).statistic) < stats.norm.ppf(0.9995)


def test_without_a_level_that_both_reach_it_says_so() -> None:
    made = setting({"full": lambda place, budget: 0.8, "lora": lambda place, budget: 0.3})
    with pytest.raises(TooThin, match=r"share a level of learning.*0 seeds.*add rates or budgets"):
        equal_learning(made, made.full(), made.lora())


def test_too_few_seeds_or_items_or_nothing_learnt_say_so() -> None:
    made = setting({"full": 0.7, "lora": 0.7}, own={"seeds": [0, 1]})
    with pytest.raises(TooThin, match="2 seeds with points of both full and lora"):
        equal_learning(made, made.full(), made.lora())
    made = setting({"full": 0.7, "lora": 0.7}, items=24)
    with pytest.raises(TooThin, match="24 items measured"):
        equal_learning(made, made.full(), made.lora())
    made = setting({"full": lambda place, budget: (0.6, 0.1, 0.1)[place], "lora": 0.7})
    with pytest.raises(TooThin, match="full has not surely learnt anything"):
        equal_learning(made, made.full(), made.lora())
