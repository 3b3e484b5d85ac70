"""Which items turned: right on the base and wrong on the tuned model, and the other way round.

A mean hides them: a model that lost as many questions as it gained has forgotten. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from laura.analysis.tradeoff import Array
from laura.results.statistics import Contrast, Variance, crossed, mean


@dataclass(frozen=True)
class TurnedItems:
    """A task's items before and after, in one order.

    Attributes:
        before: The base's score of each, 0 to 1: (items,).
        after: The tuned models', one a seed: (seeds, items).
        choices: How many answers each offers, (items,); None where the model writes its own.
    """

    before: Array
    after: Array
    choices: Array | None = None

    @property
    def luck(self) -> float | None:
        """What guessing could give of each side: share of all items.

        Formula: with accuracy a before and k choices, (1 - a) k / (k - 1) are guessed and 1/k of
        these right by luck, of which (k - 1) / k come out wrong when they are guessed anew:
        (1 - a) / k. So many of the wrong come out right, too.

        Source:
            arXiv:2510.17776 asks for the adjustment; its formula is derived anew here.
        """
        if self.choices is None:
            return None
        return float((1 - self.before.mean()) * (1 / self.choices).mean())


@dataclass(frozen=True)
class Transitions:
    """Shares of items that turned, over one task or the plain mean of several.

    Attributes:
        forgotten: Right before and wrong after.
        gained: Wrong before and right after.
        luck: What of either guessing anew could give; None where that is not known.
    """

    forgotten: Contrast
    gained: Contrast
    luck: float | None


def transitions(tasks: Sequence[TurnedItems]) -> Transitions:
    """Count the items that turned, with errors over seeds and items.

    Scores between 0 and 1 are means of several samples; they count as the chance that one
    sample before is right and one after is wrong.

    Args:
        tasks: At least one, of the same seeds; they weigh the same.
    """
    share = 1 / len(tasks)
    lucks = [task.luck for task in tasks]
    known = [luck for luck in lucks if luck is not None]
    return Transitions(
        _share([share * task.before * (1 - task.after) for task in tasks], share),
        _share([share * (1 - task.before) * task.after for task in tasks], share),
        fmean(known) if len(known) == len(lucks) else None,
    )


def _share(tables: Sequence[Array], point: float) -> Contrast:
    if len(tables[0]) > 1:
        return crossed(tables, [point] * len(tables))
    # One seed: the luck of the seed is not known, that of the items is.
    found = [mean(table[0]) for table in tables]
    parts = [Variance("items", one.stderr**2, np.inf) for one in found]
    value, n = sum(one.value for one in found), sum(one.n for one in found)
    return Contrast(value, tuple(parts), n, 1)
