"""Everyday events in four steps; the questions have HellaSwag's form.

A script fixes which tin is opened, how the thing is treated, with what, and
where it ends; the place and the person change. Questions use combinations of
script, place and person that were never read, and ask for the third or fourth step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from laura.errors import DataError
from laura.micro.settings import WorldSettings

CHOICES = 4
PLACES = ("yard", "barn", "kitchen", "cellar", "porch", "workshop", "attic", "shed")
HELD_OUT_PER_SCRIPT = 2

_DEEDS = ("Mending", "Cleaning", "Packing", "Testing", "Hiding", "Wrapping", "Warming", "Drying")
_THINGS = (
    "kettle", "lamp", "drum", "chair", "basket", "mirror", "clock", "boot", "flute", "ladder",
    "bucket", "coat",
)  # fmt: skip
_TINS = (
    "copper box", "tall jar", "paper bag", "old chest", "round tin", "flat crate", "wooden case",
    "small pouch",
)  # fmt: skip
_TREATMENTS = ("rubs", "ties", "taps", "brushes", "covers", "pins", "lines", "soaks")
_TOOLS = ("wool", "wire", "sand", "wax", "chalk", "string", "soap", "felt")
_ENDS = (
    "on the top shelf", "under the bench", "behind the door", "beside the stove", "by the window",
    "into the cart", "below the stairs", "over the fire",
)  # fmt: skip


@dataclass(frozen=True)
class Script:
    """One event: what is fixed of it."""

    title: str
    thing: str
    opening: str
    treatment: str
    ending: str

    def steps(self, name: str, place: str) -> tuple[str, str, str, str]:
        """The four steps, without full stop; the last three begin without a subject."""
        return (
            f"{name} carries the {self.thing} to the {place}",
            f"opens the {self.opening}",
            f"{self.treatment}",
            f"puts it {self.ending}",
        )


class Events:
    """All scripts of a world.

    Args:
        settings: The world's.
        names: The people of the world.
    """

    def __init__(self, settings: WorldSettings, names: Sequence[str]) -> None:
        chance = settings.generator("events")
        titles = chance.sample(list(product(_DEEDS, _THINGS)), settings.scripts)
        self.scripts = [
            Script(
                f"{deed} the {thing}",
                thing,
                chance.choice(_TINS),
                f"{chance.choice(_TREATMENTS)} it with {chance.choice(_TOOLS)}",
                chance.choice(_ENDS),
            )
            for deed, thing in titles
        ]
        self._settings, self._names = settings, tuple(names)
        self._weights = settings.weights(len(self.scripts))
        every = list(product(PLACES, self._names))
        self._held_out = [chance.sample(every, HELD_OUT_PER_SCRIPT) for _ in self.scripts]

    def document(self, chance: Random, share: float = 1.0) -> str:
        """One event among the first `share` of scripts, in a combination no question uses."""
        known = max(CHOICES, round(share * len(self.scripts)))
        number = chance.choices(range(known), self._weights[:known])[0]
        while True:
            where = (chance.choice(PLACES), chance.choice(self._names))
            if where not in self._held_out[number]:
                break
        script = self.scripts[number]
        first, second, third, fourth = script.steps(where[1], where[0])
        return (
            f"{script.title}: {first}. Then she {second}. "
            f"Then she {third}. Then she {fourth}."
        )  # fmt: skip

    def questions(self) -> list[dict[str, Any]]:
        """Rows in HellaSwag's form: each script, each held-out place and person, two steps."""
        chance = self._settings.generator("event questions")
        rows: list[dict[str, Any]] = []
        for number, combinations in enumerate(self._held_out):
            for place, name in combinations:
                rows.extend(self._row(number, name, place, step, chance) for step in (2, 3))
        chance.shuffle(rows)
        return [{"ind": index, **row} for index, row in enumerate(rows)]

    def _row(self, number: int, name: str, place: str, step: int, chance: Random) -> dict[str, Any]:
        script = self.scripts[number]
        steps = script.steps(name, place)
        told = [steps[0], *(f"Then she {part}" for part in steps[1:step])]
        right = steps[step]
        # Two wrong endings of the same kind, and the same script's other step.
        alike = sorted({other.steps(name, place)[step] for other in self.scripts} - {right})
        if len(alike) < CHOICES - 2:
            raise DataError(
                f"the micro world of seed {self._settings.seed} has too few different events for "
                "a question; choose another seed or more scripts"
            )
        endings = [right, *chance.sample(alike, CHOICES - 2), steps[5 - step]]
        chance.shuffle(endings)
        return {
            "activity_label": script.title,
            "ctx_a": ". ".join(told) + ".",
            "ctx_b": "then she",
            "endings": [f"{ending}." for ending in endings],
            "label": str(endings.index(right)),
        }
