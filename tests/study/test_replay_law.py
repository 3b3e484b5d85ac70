"""The law of replay: parameters found again, another least squares, what recommend says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from laura.results.schema import Constraint
from laura.study.claims.replay_law import fit, replay_laws
from laura.study.recommend import decide, not_met_text, recommendation_of, replay_text
from tests.study.fabricated import FULL, LORA, setting

SHARES = np.array([0, 0.01, 0.03, 0.1, 0.3])


def law(at: Any, scale: float, reach: float, power: float, rest: float) -> Any:
    return scale / (1 + reach * at) ** power + rest


def test_a_law_without_noise_is_found_again() -> None:
    shares, budgets = np.tile(SHARES, 2), np.repeat([0.25, 1.0], len(SHARES))
    reach = 10 ** (100 / 60)  # on the grid, as the powers are
    forgot = 0.3 * budgets**0.5 / (1 + reach * shares) ** 0.7 + 0.02
    found = fit(shares, budgets, forgot[None])
    assert found.r_squared[0] == pytest.approx(1)
    wanted = ((0.3 / 0.08) ** (1 / 0.7) - 1) / reach  # where it has come down to 10 points
    assert found.share_for(0.1, 1.0)[0] == pytest.approx(wanted, rel=1e-6)
    assert found.share_for(0.5, 1.0)[0] == 0.0
    assert found.share_for(-0.5, 1.0)[0] == np.inf


def test_no_worse_than_another_least_squares() -> None:
    shares = np.concatenate([SHARES, [0.02, 0.05]])
    forgot = law(shares, 0.3, 40, 0.8, 0.02) + np.random.default_rng(0).normal(0, 0.01, len(shares))
    (scale, reach, power, rest), _ = curve_fit(
        law, shares, forgot, p0=(0.3, 40, 0.8, 0), bounds=([0, 1, 0.05, -1], [5, 1e4, 2, 1])
    )
    theirs = ((forgot - law(shares, scale, reach, power, rest)) ** 2).sum()
    ours = (1 - fit(shares, np.ones(len(shares)), forgot[None]).r_squared[0]) * (
        (forgot - forgot.mean()) ** 2
    ).sum()
    assert ours <= 1.02 * theirs


def replayed(**more: Any) -> Any:
    """Forgetting of 40 points without replay, less with more of it."""
    arms = {f"r{share:g}": {**FULL, **({"replay": share} if share else {})} for share in SHARES}
    kept = {f"r{share:g}": 0.85 - law(share, 0.4, 40, 0.8, 0.0) for share in SHARES}
    own = {"seeds": (0, 1, 2, 3, 4), "budgets": (4,)}
    return setting(dict.fromkeys(arms, 0.7), kept, arms={**arms, "lora": LORA}, own=own,
                   luck=0.003, items=400, **more)  # fmt: skip


def test_the_share_that_keeps_a_bound() -> None:
    (found,) = replay_laws(replayed(), 0.15)
    wanted = ((0.4 / 0.15) ** (1 / 0.8) - 1) / 40
    assert found.arm == "r0" and found.shares == SHARES.tolist() and found.r_squared > 0.95
    low, high = found.interval
    assert found.share is not None and low is not None and high is not None
    assert low < wanted < high and low < found.share < high < 0.3
    assert "of replay" in replay_text(found) and "over 5 shares" in replay_text(found)
    (beyond,) = replay_laws(replayed(), 0.001)
    assert beyond.share is None and "over 30 %" in replay_text(beyond)


def test_recommend_tells_it_where_the_bound_is_kept_and_where_not(tmp_path: Any) -> None:
    made = replayed()
    kept = recommendation_of(decide(made, Constraint(max_forgetting=0.2), {}, tmp_path), None, None)
    assert len(kept.replay) == 1
    none = decide(made, Constraint(max_forgetting=0.001), {}, tmp_path)
    assert none.chosen is None and "% of replay" in not_met_text(none)
    alone = decide(setting(), Constraint(max_forgetting=0.9), {}, tmp_path)
    assert recommendation_of(alone, None, None).replay == []
