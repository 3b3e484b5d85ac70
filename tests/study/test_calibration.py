"""The judge keeps its error rates on simulated studies, and a judge that does not is found out.

The whole of it is `make calibration`; here are a few worlds with studies enough to tell a judge
that is wrong half of the time from one that is wrong at most once in twenty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from scipy import stats

from laura.results.statistics import Contrast
from laura.study import choosing
from scripts.calibrate import Tally, faults, report, run_case

STUDIES = 60
MOST = int(stats.binom.ppf(0.999, STUDIES, 0.05))


def false_verdicts(tally: Tally) -> dict[str, int]:
    """How many studies had a false verdict, by what gave it; those beyond chance alone."""
    told = {**tally.false, "headline": tally.headline, "recommend and gate": tally.kept}
    return {what: count for what, count in told.items() if count > MOST}


def missed(tally: Tally) -> dict[str, float]:
    """Shares of the intervals that hold the truth, where they are too few for 95 %."""
    return {
        what: tally.inside[what] / n
        for what, n in tally.told.items()
        if tally.inside[what] < stats.binom.ppf(0.001, n, 0.95)
    }


@pytest.mark.parametrize("name", ["doubt-3", "unequal-lists"])
def test_false_verdicts_are_no_more_than_they_may(name: str) -> None:
    _, tally = run_case((name, STUDIES, 0))
    assert tally.studies == STUDIES
    assert not false_verdicts(tally)
    assert not missed(tally)
    # Also by its own interval no claim is wrong more often, so that Holm hides nothing.
    assert {what: n for what, n in tally.alone.items() if n > MOST} == {}
    assert max(tally.spoke.values()) > STUDIES / 2, "it said nothing, so nothing was tested"


def test_a_rate_chosen_on_the_first_seed_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that Laura once had: it is wrong in about half of such studies."""
    right = choosing._best

    def first(
        rates: Sequence[float], seeds: Sequence[int], trials: Mapping[Any, Any], evidence: Any
    ) -> dict[int, float]:
        best = right(rates, seeds, trials, evidence)
        return dict.fromkeys(best, next(iter(best.values()))) if best else {}

    monkeypatch.setattr(choosing, "_best", first)
    _, tally = run_case(("doubt-3", STUDIES, 0))
    assert tally.alone["forgets-less"] > MOST
    assert "forgetting" in missed(tally)
    # The calibration's own bound is broken as well, so that `make calibration` would fail.
    assert any("intervals of forgetting" in fault for fault in faults({"doubt-3": tally}))
    assert "doubt-3" in report({"doubt-3": tally}, {}, STUDIES)


def test_the_normal_instead_of_students_t_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contrast, "reach", lambda self, level=0.95: 1.96 * self.stderr)
    _, tally = run_case(("certain-3", STUDIES, 0))
    assert missed(tally)


def test_the_bound_tells_one_in_twenty_from_one_in_five() -> None:
    assert stats.binom.cdf(MOST, STUDIES, 0.05) > 0.998
    assert stats.binom.sf(MOST, STUDIES, 0.25) > 0.95
    assert math.isclose(MOST, 9, abs_tol=1)
