"""What determines a micro world: a seed and a few sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Generic, TypeVar

from laura.results.errors import DataError

Thing = TypeVar("Thing")

# Of each source task. At 0.85, the least the shipped base may have, their standard error is 0.02.
QUESTIONS = 320

# Allowed values, both ends included. Below them a question lacks wrong choices or a held-out
# name; above them the tiny base cannot hold the world.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "entities": (8, 400),
    "events": (8, 288),
    "names": (8, 32),
    "rarity": (1, 100),
}


def check_ranges(
    what: str, values: Mapping[str, float], limits: Mapping[str, tuple[float, float]]
) -> None:
    """Check that each value lies within its limits, both included.

    Raises:
        DataError: some do not; all of them are told.
    """
    faults = [
        f"{name} must be {low:g} to {high:g}, came {values[name]!r}"
        for name, (low, high) in limits.items()
        if not low <= values[name] <= high
    ]
    if faults:
        raise DataError(f"{what}: {'; '.join(faults)}")


@dataclass(frozen=True)
class WorldSettings:
    """A world is a pure function of these.

    Attributes:
        seed: Seed of everything drawn.
        entities: Invented animals, each with four attributes.
        events: Everyday events of four steps.
        names: People, of whom two meet in a document.
        rarity: How many times commoner the commonest entity and event are than the
            rarest; it makes some of them hard to remember.
    """

    seed: int = 0
    entities: int = 176
    events: int = 240
    names: int = 24
    rarity: float = 8.0

    def __post_init__(self) -> None:
        check_ranges("no such micro world", asdict(self), LIMITS)

    def generator(self, purpose: str) -> Random:
        """A stream of chance for one purpose, independent of all others."""
        values = ":".join(str(value) for value in asdict(self).values())
        return Random(f"{purpose}:{values}")

    def weights(self, count: int, power: float = 1.0) -> list[float]:
        """How often each of `count` things is met, commonest first, rarest 1.

        Args:
            count: How many things there are.
            power: The commonest is met rarity ** power times as often as the rarest.
        """
        if count == 1:
            return [1.0]
        return [self.rarity ** (power * (1 - place / (count - 1))) for place in range(count)]


class KnownThings(Generic[Thing]):
    """Things by how often they are met, of which the first may be all there are yet.

    Args:
        things: Commonest first.
        weights: How often each is met.
        least: How many exist at least, however small the share.
    """

    def __init__(self, things: Sequence[Thing], weights: Sequence[float], least: int) -> None:
        self._things, self._weights, self._least = list(things), list(weights), least

    def draw(self, chance: Random, share: float, count: int = 1) -> list[Thing]:
        """`count` of the first `share` of things, one by one."""
        known = max(self._least, round(share * len(self._things)))
        return chance.choices(self._things[:known], self._weights[:known], k=count)
