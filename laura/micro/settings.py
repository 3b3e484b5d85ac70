"""What determines a micro world: a seed and a few sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random

from laura.errors import DataError

# Allowed values, both ends included. Below them a question lacks wrong choices or a held-out
# name; above them the tiny base cannot hold the world.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "entities": (8, 400),
    "scripts": (8, 96),
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
        scripts: Everyday events of four steps.
        names: People, of whom two meet in a document.
        rarity: How many times commoner the commonest entity, script and pronoun
            schema are than the rarest; it makes some of them hard to remember.
    """

    seed: int = 0
    entities: int = 160
    scripts: int = 96
    names: int = 24
    rarity: float = 8.0

    def __post_init__(self) -> None:
        check_ranges("no such micro world", asdict(self), LIMITS)

    def generator(self, purpose: str) -> Random:
        """A stream of chance for one purpose, independent of all others."""
        values = ":".join(str(value) for value in asdict(self).values())
        return Random(f"{purpose}:{values}")

    def weights(self, count: int) -> list[float]:
        """How often each of `count` things is met, commonest first, rarest 1."""
        if count == 1:
            return [1.0]
        return [self.rarity ** (1 - place / (count - 1)) for place in range(count)]
