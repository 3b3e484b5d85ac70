"""How forgetting falls with the share of replay, and which share keeps a bound. No torch.

Law: F(p, D) = A D^b / (1 + B p)^a + E for a share p of replay and a budget D, the base's size
being one. Source: Bethune et al. 2025, arXiv:2502.06042, who fit it to a loss; here it is fitted
to what the study judges forgetting by, and R2 says how well that goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from laura.analysis.tradeoff import quantiles
from laura.results.schema import ReplayLaw
from laura.results.statistics import TooThin
from laura.study.claims.settings import FORGETTING, Kind, Setting

DRAWS = 200
FEWEST_PLACES, PLACES_FOR_REST = 4, 6  # shares times budgets: to fit at all, and to fit E too
SCALES = np.logspace(0, 4, 61)  # of B
POWERS = np.linspace(0.05, 2, 40)  # of a
GROWTHS = np.linspace(0, 1.5, 16)  # of b
Array = NDArray[np.float64]


@dataclass(frozen=True)
class LawFit:
    """The law, fitted; one value a draw.

    Attributes:
        scale: A.
        reach: B.
        power: a.
        growth: b.
        rest: E.
        r_squared: Share of the spread between places that it explains.
    """

    scale: Array
    reach: Array
    power: Array
    growth: Array
    rest: Array
    r_squared: Array

    def share_for(self, bound: float, budget: float) -> Array:
        """The least share that keeps forgetting at a budget within a bound; infinite for none."""
        whole = self.scale * budget**self.growth
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            part = (bound - self.rest) / whole
            share = (part ** (-1 / self.power) - 1) / self.reach
        return np.where(part <= 0, np.inf, np.where(whole <= bound - self.rest, 0.0, share))


def fit(shares: Array, budgets: Array, forgot: Array) -> LawFit:
    """Least squares, over a grid of B, a and b, of the linear part in closed form.

    Args:
        shares: (places,).
        budgets: (places,).
        forgot: (draws, places).
    """
    growths = GROWTHS if len(set(budgets.tolist())) > 1 else np.zeros(1)
    grid = np.array(list(product(SCALES, POWERS, growths)))
    reach, power, growth = grid.T
    features = budgets ** growth[:, None] / (1 + reach[:, None] * shares) ** power[:, None]
    middle, centre = features.mean(axis=1, keepdims=True), forgot.mean(axis=1, keepdims=True)
    if len(shares) < PLACES_FOR_REST:
        middle, centre = np.zeros_like(middle), np.zeros_like(centre)
    across = (forgot - centre) @ (features - middle).T
    slopes = np.maximum(across, 0) / ((features - middle) ** 2).sum(axis=1)
    best = (slopes * across).argmax(axis=1)  # what it takes off the sum of squares
    rows = np.arange(len(forgot))
    slope = slopes[rows, best]
    rest = (centre - slope[:, None] * middle[best])[:, 0]
    missed = forgot - slope[:, None] * features[best] - rest[:, None]
    spread = ((forgot - forgot.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    explained = 1 - (missed**2).sum(axis=1) / np.maximum(spread, 1e-30)
    return LawFit(slope, reach[best], power[best], growth[best], rest, explained)


def replay_laws(setting: Setting, bound: float) -> Iterator[ReplayLaw]:
    """The law of every arm that stands beside the same arm with several shares of replay.

    Each arm tuned. Errors are drawn from Student's t over seeds at every place.

    Args:
        setting: The study.
        bound: The most that may be forgotten, in the measure's own unit.
    """
    for plain in setting.arms:
        arms = [arm for arm in setting.arms if arm.differs_in(plain) <= {"replay"}]
        if plain.number("replay") or len(arms) < 3:
            continue
        try:
            yield _law(setting, plain, arms, bound)
        except TooThin:
            continue


def _law(setting: Setting, plain: Kind, arms: Sequence[Kind], bound: float) -> ReplayLaw:
    places = [(arm, budget) for arm in arms for budget in setting.budgets]
    if len(places) < FEWEST_PLACES:
        raise TooThin("too few shares and budgets")
    gains = [setting.gain(arm, FORGETTING, budget) for arm, budget in places]
    shares = np.array([arm.number("replay") for arm, _ in places])
    budgets = np.array([budget / max(setting.budgets) for _, budget in places])
    forgot = -np.array([gain.value for gain in gains])
    errors = np.array([gain.stderr for gain in gains])
    seeds = min(gain.seeds for gain in gains)
    draws = np.random.default_rng(0).standard_t(seeds - 1, (DRAWS, len(places)))
    found = fit(shares, budgets, np.vstack([forgot, forgot + draws * errors]))
    wanted = found.share_for(bound, 1.0)
    low, high = quantiles(wanted[1:])
    most = float(shares.max())
    return ReplayLaw(
        arm=plain.name,
        shares=sorted(set(shares.tolist())),
        budget=max(setting.budgets),
        r_squared=float(found.r_squared[0]),
        share=_within(float(wanted[0]), most),
        interval=(_within(low, most), _within(high, most)),
    )


def _within(share: float, most: float) -> float | None:
    """A share, or None beyond the largest that was tried."""
    return share if share <= most else None
