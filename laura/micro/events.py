"""Everyday events in four steps; the questions have HellaSwag's form.

What is done and where fixes which tin is opened, how the thing is treated, with
what, and where it ends; the person changes. Questions tell each event of a person
it was never told of, and ask for the third or fourth step. The same deed ends
differently elsewhere, and those are the wrong endings: the title alone tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from random import Random
from typing import Any

from laura.micro.settings import QUESTIONS, KnownThings, WorldSettings
from laura.results.errors import DataError

CHOICES = 4
PLACES = ("yard", "barn", "kitchen", "cellar", "porch", "workshop", "attic", "shed")
PLACES_PER_TITLE = 3
# An event is learnt from a few tellings, so the rarest are much rarer than the rarest animals.
POWER = 2.2

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
class Event:
    """What is done where, and how it goes."""

    title: str
    thing: str
    place: str
    opening: str
    treatment: str
    ending: str

    def steps(self, name: str) -> tuple[str, str, str, str]:
        """The four steps, without full stop; the last three begin without a subject."""
        return (
            f"{name} carries the {self.thing} to the {self.place}",
            f"opens the {self.opening}",
            self.treatment,
            f"puts it {self.ending}",
        )


class Events:
    """All events of a world.

    Args:
        settings: The world's.
        names: The people of the world.
    """

    def __init__(self, settings: WorldSettings, names: Sequence[str]) -> None:
        chance = settings.generator("events")
        titles = chance.sample(
            list(product(_DEEDS, _THINGS)), ceil(settings.events / PLACES_PER_TITLE)
        )
        where = [(*title, place) for title in titles
                 for place in chance.sample(PLACES, PLACES_PER_TITLE)]  # fmt: skip
        self.all = [
            Event(
                f"{deed} the {thing}",
                thing,
                place,
                chance.choice(_TINS),
                f"{chance.choice(_TREATMENTS)} it with {chance.choice(_TOOLS)}",
                chance.choice(_ENDS),
            )
            for deed, thing, place in chance.sample(where, settings.events)
        ]
        self._settings, self._names = settings, tuple(names)
        weights = settings.weights(len(self.all), POWER)
        self._known = KnownThings(list(enumerate(self.all)), weights, CHOICES)
        self._asked_of = [chance.choice(self._names) for _ in self.all]

    def document(self, chance: Random, share: float = 1.0) -> str:
        """One event among the first `share` of them, told of someone no question is about."""
        number, event = self._known.draw(chance, share)[0]
        name = chance.choice([name for name in self._names if name != self._asked_of[number]])
        first, second, third, fourth = event.steps(name)
        return (
            f"{event.title}: {first}. Then she {second}. "
            f"Then she {third}. Then she {fourth}."
        )  # fmt: skip

    def questions(self) -> list[dict[str, Any]]:
        """Rows in HellaSwag's form: an event told of its held-out person, and a step of it."""
        chance = self._settings.generator("event questions")
        rows = [
            self._row(event, name, step, chance)
            for event, name in zip(self.all, self._asked_of, strict=True)
            for step in (2, 3)
        ]
        chance.shuffle(rows)
        return [{"ind": index, **row} for index, row in enumerate(rows[:QUESTIONS])]

    def _row(self, event: Event, name: str, step: int, chance: Random) -> dict[str, Any]:
        steps = event.steps(name)
        told = [steps[0], *(f"Then she {part}" for part in steps[1:step])]
        right = steps[step]
        near = {one.steps(name)[step] for one in self.all if one.title == event.title} - {right}
        far = {one.steps(name)[step] for one in self.all} - near - {right}
        if len(near) + len(far) < CHOICES - 1:
            raise DataError(
                f"the micro world of seed {self._settings.seed} has too few different events for "
                "a question; choose another seed or more events"
            )
        wrong = sorted(near) + chance.sample(sorted(far), len(far))
        endings = [right, *wrong[: CHOICES - 1]]
        chance.shuffle(endings)
        return {
            "activity_label": event.title,
            "ctx_a": ". ".join(told) + ".",
            "ctx_b": "then she",
            "endings": [f"{ending}." for ending in endings],
            "label": str(endings.index(right)),
        }
