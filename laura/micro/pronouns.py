"""Who is meant: cause and effect between two people; the questions have WinoGrande's form.

A schema is what one person does to another, with one cause that lies in the
first and one that lies in the second. In source text the cause names its person;
a question leaves a blank there. Each document keeps a cast of two, and the pairs
of the questions never meet in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from laura.micro.settings import QUESTIONS, KnownThings, WorldSettings

ROWS_PER_CAUSE = 4
# A model learns who is who with few people, and then goes on to more; not with many at once.
FIRST_CAST, FIRST_SCHEMAS = 3, 10
# Once a model knows how names are brought forward, it learns a cause from a few
# tellings, so the rarest schemas are much rarer than the rarest animals.
POWER = 3.2
# A name never begins a text: there it would be another token than within.
DAYS = ("Yesterday", "Today", "Once", "Later", "Last week", "One evening")


@dataclass(frozen=True)
class Schema:
    """`deed` joins two people; `causes` are what was true of the first and of the second."""

    deed: str
    causes: tuple[str, str]

    def sentence(
        self, day: str, people: tuple[str, str], role: int, name: str | None = None
    ) -> str:
        """Told of two people, the cause lying in the one of `role`; `name` stands for him."""
        subject = people[role] if name is None else name
        return f"{day} {people[0]} {self.deed} {people[1]} because {subject} {self.causes[role]}."


SCHEMAS = (
    Schema("thanked", ("felt grateful", "had been helpful")),
    Schema("scolded", ("had lost patience", "broke a plate")),
    Schema("followed", ("did not know the way", "walked in front")),
    Schema("carried", ("was very strong", "had hurt a leg")),
    Schema("paid", ("owed some money", "did all the work")),
    Schema("envied", ("owned almost nothing", "had won a prize")),
    Schema("woke", ("had to leave soon", "was still asleep")),
    Schema("fed", ("had plenty of bread", "looked hungry")),
    Schema("warned", ("saw the danger first", "stood on thin ice")),
    Schema("called", ("needed an answer", "had the only key")),
    Schema("taught", ("knew the old songs", "wanted to learn")),
    Schema("hid from", ("was afraid", "looked angry")),
    Schema("waited for", ("arrived early", "missed the bus")),
    Schema("laughed at", ("was in a silly mood", "wore a strange hat")),
    Schema("visited", ("had a free day", "lay ill in bed")),
    Schema("chased", ("wanted the ball back", "stole an apple")),
    Schema("asked", ("was curious", "had read the book")),
    Schema("comforted", ("had a kind heart", "was crying")),
    Schema("painted", ("loved to draw", "sat very still")),
    Schema("trusted", ("believed every word", "never told lies")),
    Schema("pushed", ("was in a hurry", "stood in the way")),
    Schema("pulled up", ("had a long rope", "fell into the well")),
    Schema("praised", ("liked the soup", "cooked so well")),
    Schema("missed", ("stayed at home", "moved far away")),
    Schema("copied", ("had no ideas", "drew the best maps")),
    Schema("hired", ("needed more hands", "could mend roofs")),
    Schema("robbed", ("wanted gold", "left the door open")),
    Schema("nursed", ("knew about herbs", "had a fever")),
    Schema("beat", ("ran very fast", "tripped at the start")),
    Schema("begged", ("had lost the job", "owned the mill")),
    Schema("guided", ("grew up in these hills", "was a stranger")),
    Schema("bored", ("talked all night", "had heard the tale before")),
    Schema("doubted", ("was careful", "told wild tales")),
    Schema("greeted", ("had good manners", "came through the gate")),
    Schema("outlived", ("never smoked", "caught the plague")),
    Schema("splashed", ("jumped in first", "sat near the pond")),
    Schema("tricked", ("was very clever", "believed anything")),
    Schema("obeyed", ("feared trouble", "gave the orders")),
    Schema("drove home", ("had a cart", "could not walk")),
    Schema("imitated", ("wished to be funny", "spoke with a squeak")),
)


class Pronouns:
    """The causes and people of a world.

    Args:
        settings: The world's.
        names: The people of the world.
    """

    def __init__(self, settings: WorldSettings, names: Sequence[str]) -> None:
        chance = settings.generator("pronouns")
        self.schemas = chance.sample(SCHEMAS, len(SCHEMAS))
        self._settings = settings
        weights = settings.weights(len(self.schemas), POWER)
        self._known = KnownThings(self.schemas, weights, FIRST_SCHEMAS)
        self._names = tuple(names)
        pairs = list(combinations(names, 2))
        asked = [pair for pair in pairs if pair[1] not in names[:FIRST_CAST]]
        self.asked_pairs = chance.sample(asked, max(1, len(pairs) // 10))
        self._read_pairs = [pair for pair in pairs if pair not in self.asked_pairs]

    def document(self, chance: Random, share: float = 1.0) -> str:
        """Some sentences about one cast of two, of the first `share` of people and schemas."""
        known = self._names[: max(FIRST_CAST, round(share * len(self._names)))]
        pair = chance.choice([pair for pair in self._read_pairs if pair[1] in known])
        told = []
        count = chance.randint(1, 4)
        for schema in self._known.draw(chance, share, count):
            people = pair if chance.random() < 0.5 else (pair[1], pair[0])
            told.append(schema.sentence(chance.choice(DAYS), people, chance.randrange(2)))
        return " ".join(told)

    def questions(self) -> list[dict[str, Any]]:
        """Rows in WinoGrande's form: each cause, with pairs that were never read of."""
        chance = self._settings.generator("pronoun questions")
        rows = []
        for schema in self.schemas:
            for role in (0, 1):
                for _ in range(ROWS_PER_CAUSE):
                    people = tuple(chance.sample(chance.choice(self.asked_pairs), 2))
                    options = chance.sample(people, 2)
                    rows.append(
                        {
                            "sentence": schema.sentence(
                                chance.choice(DAYS), (people[0], people[1]), role, "_"
                            ),
                            "option1": options[0],
                            "option2": options[1],
                            "answer": str(options.index(people[role]) + 1),
                        }
                    )
        chance.shuffle(rows)
        return rows[:QUESTIONS]
