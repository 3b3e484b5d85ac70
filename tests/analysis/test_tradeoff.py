"""Front, matched forgetting and area against closed forms and naive references."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laura.analysis import tradeoff
from laura.analysis.tradeoff import Cell

NUMBERS = st.integers(-4, 4).map(float)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def cell(rate: float, budget: float, learnt: Any, forgotten: Any, seeds: int = 1) -> Cell:
    arrays = [np.atleast_1d(np.asarray(value, float)) for value in (learnt, forgotten)]
    return Cell(rate, budget, seeds, *arrays)


def drawn(rate: float, budget: float, learnt: float, forgotten: float, seeds: int = 1) -> Cell:
    """A cell without noise: the data as they are, and two draws."""
    return cell(rate, budget, [learnt] * 3, [forgotten] * 3, seeds)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    front = [points[i] for i in tradeoff.pareto_front(points)]
    expected = {p for p in points if not any(beats(q, p) for q in points)}
    assert set(front) == expected and len(front) == len(expected)
    assert front == sorted(front, reverse=True)


@given(POINTS)
def test_the_area_is_that_of_the_union_of_rectangles(points: list[tuple[float, float]]) -> None:
    """Naively: every small field of the plane that one of the rectangles covers."""
    most, base = (3.0, 2.0), -1.0
    cells = [cell(1, i, learnt, forgotten) for i, (learnt, forgotten) in enumerate(points)]
    steps = 0.25
    covered = sum(
        any(x < learnt - base and y > forgotten for learnt, forgotten in points)
        for x in np.arange(steps / 2, most[0], steps)
        for y in np.arange(steps / 2, most[1], steps)
    )
    fields = most[0] * most[1] / steps**2
    assert tradeoff.area(cells, np.array([base]), most)[0] == pytest.approx(covered / fields)


def test_areas_in_closed_form() -> None:
    base = np.zeros(3)
    arms = {
        "one": [drawn(1, 1, 1.0, 0.25), drawn(1, 2, 2.0, 0.5)],
        "other": [drawn(1, 1, 1.0, 1.0, seeds=2)],
        "none": [],
    }
    found = tradeoff.areas(arms, base)
    # The plane is 2 wide and 1 high.
    assert found["one"]["value"] == pytest.approx((1 * 0.75 + 1 * 0.5) / 2)
    assert found["one"]["interval"] == [found["one"]["value"]] * 2
    assert found["other"] == {"value": 0.0, "interval": [0.0, 0.0], "seeds": 2}
    assert "none" not in found
    assert tradeoff.areas({"a": [drawn(1, 1, -1, 1)]}, base) == {}
    assert tradeoff.areas({"a": [drawn(1, 1, 1, 0)]}, base) == {}


def test_neighbours_are_the_next_budget_and_the_next_rate() -> None:
    grid = [cell(r, b, 0, 0) for r, b in ((3, 1), (1, 1), (1, 4), (1, 2), (3, 4))]
    found = {
        frozenset([(u.learning_rate, u.budget), (v.learning_rate, v.budget)])
        for u, v in tradeoff.edges(grid)
    }
    pairs = [
        ((1, 1), (1, 2)), ((1, 2), (1, 4)), ((3, 1), (3, 4)), ((1, 1), (3, 1)), ((1, 4), (3, 4)),
    ]  # fmt: skip
    assert found == {frozenset(pair) for pair in pairs}


def test_straight_curves_in_closed_form() -> None:
    """Forgetting 2 x and 0.5 x + 1 of learning x, over [0, 4] and [1, 6]: compared on [1, 4]."""
    first = [drawn(1, b, x, 2 * x, seeds=3) for b, x in ((1, 0.0), (2, 1.5), (3, 4.0))]
    second = [drawn(1, b, x, 0.5 * x + 1, seeds=2) for b, x in ((1, 1.0), (2, 6.0))]
    found = tradeoff.match(first, second, (0, 0.5, 1))
    assert [one.level for one in found] == [1.0, 2.5, 4.0]
    for one in found:
        expected = 2 * one.level, 0.5 * one.level + 1
        assert one.forgotten == pytest.approx(expected)
        assert one.difference == pytest.approx(expected[0] - expected[1])
        assert one.interval == pytest.approx([one.difference] * 2)
        assert (one.reached, one.seeds) == (1.0, 2)


def test_no_common_level_and_no_curve_give_nothing() -> None:
    low = [drawn(1, 1, 0, 0), drawn(1, 2, 1, 1)]
    high = [drawn(1, 1, 1, 0), drawn(1, 2, 3, 1)]
    assert tradeoff.match(low, high) == []
    assert tradeoff.match(low, [drawn(1, 1, 0.5, 0)]) == []


def test_an_interval_needs_the_level_in_most_draws() -> None:
    # The second arm reaches the level in the data and in one draw of two.
    first = [drawn(1, 1, 0, 0), drawn(1, 2, 4, 4)]
    second = [cell(1, 1, [0, 0, 0], [0, 0, 0]), cell(1, 2, [4, 4, 1], [2, 2, 2])]
    [found] = tradeoff.match(first, second, (0.5,))
    assert (found.reached, found.interval) == (0.5, None)
    assert found.difference == pytest.approx(2 - 1)


def naive_forgotten(level: float, cells: Sequence[Cell], draw: int) -> float:
    """All pairs of cells that are neighbours, one after the other."""
    best = math.inf
    for u, v in itertools.permutations(cells, 2):
        for same, other in (("learning_rate", "budget"), ("budget", "learning_rate")):
            if getattr(u, same) != getattr(v, same) or getattr(u, other) >= getattr(v, other):
                continue
            between = [
                w
                for w in cells
                if getattr(w, same) == getattr(u, same)
                and getattr(u, other) < getattr(w, other) < getattr(v, other)
            ]
            lu, lv, fu, fv = (
                float(x[draw]) for x in (u.learnt, v.learnt, u.forgotten, v.forgotten)
            )
            if between or not min(lu, lv) <= level <= max(lu, lv):
                continue
            ends = sorted([(lu, fu), (lv, fv)])
            best = min(best, float(np.interp(level, *zip(*ends, strict=True))))
    return best


def test_noisy_grids_against_a_naive_bootstrap() -> None:
    source = np.random.default_rng(0)
    draws = 200

    def arm(slope: float) -> list[Cell]:
        return [
            cell(
                rate,
                budget,
                rate + budget + source.normal(0, 0.2, draws + 1),
                slope * (rate + budget) + source.normal(0, 0.2, draws + 1),
            )
            for rate in (1.0, 2.0, 3.0)
            for budget in (1.0, 2.0, 4.0)
        ]

    first, second = arm(1.0), arm(0.5)
    for one in tradeoff.match(first, second):
        sides = [
            [naive_forgotten(one.level, cells, draw) for draw in range(draws + 1)]
            for cells in (first, second)
        ]
        assert one.forgotten == pytest.approx((sides[0][0], sides[1][0]))
        differences = np.array(sides[0][1:]) - np.array(sides[1][1:])
        there = np.isfinite(differences)
        assert one.reached == there.mean()
        assert one.interval is not None
        ends = np.quantile(differences[there], [0.025, 0.975], method="inverted_cdf")
        assert one.interval == pytest.approx(tuple(ends))
