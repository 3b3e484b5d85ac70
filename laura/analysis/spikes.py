"""Loss spikes: steps whose loss stands far above that of the steps before. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WINDOW = 32
FEWEST = 16  # losses before a step that tell what is usual
DEVIATIONS = 7.0
# A median absolute deviation times this is the standard deviation of normal noise.
NORMAL = 1.4826


@dataclass(frozen=True)
class Spike:
    """A run of neighbouring steps, each far above what was usual before it.

    Attributes:
        start: Place of its first step among the losses.
        stop: Place after its last.
        rise: Most that one of them stands above the median before it (nats).
    """

    start: int
    stop: int
    rise: float


def loss_spikes(losses: Sequence[float]) -> list[Spike]:
    """Find the spikes of a loss curve.

    A step is part of a spike if its loss exceeds the median of the up to 32 losses
    before it by more than seven robust deviations of these, 1.4826 times their median
    absolute deviation. Medians, since a spike must not hide the next. The first 16 steps
    cannot be told.

    Args:
        losses: Loss of each optimiser step in order, finite (nats).

    Returns:
        Spikes in order.

    Source:
        Seven deviations from a rolling average: the spike score of OLMo 2 (2024,
        arXiv:2501.00656). Median and MAD in their place: Hampel 1974, The influence
        curve and its role in robust estimation. Biderman et al. 2024 name loss spikes
        and do not define them.
    """
    spikes: list[Spike] = []
    for place in range(FEWEST, len(losses)):
        before = losses[max(0, place - WINDOW) : place]
        middle = median(before)
        spread = NORMAL * median(abs(loss - middle) for loss in before)
        rise = losses[place] - middle
        if rise <= DEVIATIONS * spread:
            continue
        if spikes and spikes[-1].stop == place:
            last = spikes.pop()
            spikes.append(Spike(last.start, place + 1, max(last.rise, rise)))
        else:
            spikes.append(Spike(place, place + 1, rise))
    return spikes
