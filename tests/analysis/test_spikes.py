"""Loss spikes of curves made with known ones, and against the definition written in numpy."""

from __future__ import annotations

import numpy as np

from laura.analysis.spikes import DEVIATIONS, FEWEST, WINDOW, loss_spikes


def curve(steps: int = 400, seed: int = 0) -> np.ndarray:
    """A loss that falls from 3 to 1 with normal noise of 0.05 nats."""
    noise = np.random.default_rng(seed).normal(0, 0.05, steps)
    return 1 + 2 * np.exp(-np.arange(steps) / 80) + noise


def test_only_upwards_and_not_before_enough_is_known() -> None:
    losses = curve()
    losses[100] -= 1.0
    losses[FEWEST - 1] += 9.0
    assert loss_spikes(losses.tolist()) == []
    losses[FEWEST] += 9.0
    assert [spike.start for spike in loss_spikes(losses.tolist())] == [FEWEST]
    assert loss_spikes([]) == loss_spikes([1.0] * 50) == []


def test_it_is_the_definition() -> None:
    draw = np.random.default_rng(3)
    losses = curve(seed=3) + draw.standard_t(1, 400).clip(-40, 40) * 0.1
    flagged = []
    for place in range(FEWEST, len(losses)):
        before = losses[max(0, place - WINDOW) : place]
        middle = np.median(before)
        spread = 1.4826 * np.median(np.abs(before - middle))
        if losses[place] > middle + DEVIATIONS * spread:
            flagged.append(place)
    found = loss_spikes(losses.tolist())
    assert [place for one in found for place in range(one.start, one.stop)] == flagged
    assert len(flagged) > 5
