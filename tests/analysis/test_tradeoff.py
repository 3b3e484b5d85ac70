"""Front and area against closed forms and naive references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laura.analysis import tradeoff
from laura.analysis.tradeoff import CurvePoint
from laura.results.schema import Area

NUMBERS = st.integers(-4, 4).map(float)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def cell(rate: float, budget: float, learnt: Any, forgotten: Any, seeds: int = 1) -> CurvePoint:
    arrays = [np.atleast_1d(np.asarray(value, float)) for value in (learnt, forgotten)]
    own = tuple(range(seeds))
    return CurvePoint((rate,), budget, own, tuple(map(str, own)), *arrays)


def drawn(
    rate: float, budget: float, learnt: float, forgotten: float, seeds: int = 1
) -> CurvePoint:
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
    assert found["one"].value == pytest.approx((1 * 0.75 + 1 * 0.5) / 2)
    assert found["one"].interval == (found["one"].value,) * 2
    assert found["other"] == Area(value=0.0, interval=(0.0, 0.0), seeds=2)
    assert "none" not in found
    assert tradeoff.areas({"a": [drawn(1, 1, -1, 1)]}, base) == {}
    assert tradeoff.areas({"a": [drawn(1, 1, 1, 0)]}, base) == {}
