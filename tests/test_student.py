"""Student's t against scipy's."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from laura.results.statistics import quantile, upper_tail


@pytest.mark.parametrize("freedom", [0.5, 1, 2, 2.7, 5, 30, 199, 5000, 1e7, math.inf])
def test_tails_and_quantiles_are_scipys(freedom: float) -> None:
    reference = stats.norm if math.isinf(freedom) else stats.t(freedom)
    for t in (-40.0, -2.5, -1e-9, 0.0, 0.3, 1.0, 4.303, 60.0):
        # At ten million degrees the normal is used, which is right to ten million digits of one.
        assert upper_tail(t, freedom) == pytest.approx(reference.sf(t), rel=1e-5, abs=1e-300)
    for share in (0.001, 0.025, 0.2, 0.5, 0.9, 0.975, 0.9999):
        assert quantile(share, freedom) == pytest.approx(reference.ppf(share), rel=1e-5, abs=1e-9)


def test_what_has_no_tail_is_refused() -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        upper_tail(1.0, 0)
    with pytest.raises(ValueError, match="degrees of freedom"):
        quantile(0.9, -1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(1.0, 3)
    assert upper_tail(math.inf, 3) == 0 and upper_tail(-math.inf, 3) == 1
