"""Invented animals and what is true of them; the questions have ARC-Challenge's form.

Each animal has a home, a food, a colour and a sound. Statements come in several
phrasings; the phrasing of the questions is taught for half of the facts, and the
other half is asked: what is remembered was read, but never as an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from laura.micro.settings import QUESTIONS, KnownThings, WorldSettings

CHOICES = 4


@dataclass(frozen=True)
class Attribute:
    """One property of animals: its values, and how it is stated and asked."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    question: str


ATTRIBUTES: dict[str, Attribute] = {
    "home": Attribute(
        tuple(
            f"in the {place}"
            for place in (
                "marsh", "forest", "desert", "cave", "valley", "meadow", "harbour", "orchard",
                "canyon", "garden", "swamp", "tunnel",
            )
        ),
        ("The {animal} lives {value}.", "You can find the {animal} {value}.",
         "At night the {animal} sleeps {value}."),
        "Where does the {animal} live?",
    ),
    "food": Attribute(
        ("berries", "beetles", "roots", "moss", "honey", "seeds", "snails", "leaves",
         "clams", "nuts", "worms", "reeds"),
        ("The {animal} eats {value}.", "The food of the {animal} is {value}.",
         "A hungry {animal} looks for {value}."),
        "What does the {animal} eat?",
    ),
    "colour": Attribute(
        ("red", "grey", "blue", "green", "white", "black", "brown", "yellow", "purple",
         "orange", "silver", "golden"),
        ("The {animal} is {value}.", "The colour of the {animal} is {value}.",
         "People know the {animal} because it is {value}."),
        "Which colour is the {animal}?",
    ),
    "sound": Attribute(
        ("hums", "barks", "clicks", "howls", "hisses", "growls", "sings", "squeaks",
         "rattles", "whistles", "croaks", "purrs"),
        ("The {animal} {value}.", "When it is glad the {animal} {value}.",
         "In the dark the {animal} {value}."),
        "What sound does the {animal} make?",
    ),
}  # fmt: skip

_STARTS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl")
_VOWELS = ("a", "e", "i", "o", "u")
_ENDS = ("b", "k", "l", "m", "n", "p", "r", "t", "x", "sk", "ng")


@dataclass(frozen=True)
class Fact:
    """One attribute of one animal."""

    animal: str
    attribute: str
    value: str
    asked: bool
    """Whether it is kept for the questions, so that its answer form is never taught."""

    def statement(self, chance: Random) -> str:
        """It, in one of the phrasings."""
        phrasing = chance.choice(ATTRIBUTES[self.attribute].statements)
        return phrasing.format(animal=self.animal, value=self.value)

    @property
    def question(self) -> str:
        """How it is asked."""
        return ATTRIBUTES[self.attribute].question.format(animal=self.animal)


class Facts:
    """All facts of a world.

    Args:
        settings: The world's.
    """

    def __init__(self, settings: WorldSettings) -> None:
        chance = settings.generator("facts")
        self.animals = _invented(chance, settings.entities)
        self.of: dict[str, list[Fact]] = {}
        for animal in self.animals:
            # Half of each animal's facts, so that rare animals are asked about as often.
            asked = set(chance.sample(list(ATTRIBUTES), len(ATTRIBUTES) // 2))
            self.of[animal] = [
                Fact(animal, name, chance.choice(attribute.values), name in asked)
                for name, attribute in ATTRIBUTES.items()
            ]
        self._settings = settings
        self._known = KnownThings(self.animals, settings.weights(len(self.animals)), CHOICES)

    def document(self, chance: Random, share: float = 1.0) -> str:
        """A few sentences on an animal of the first `share` of them, with some answers taught."""
        facts = self.of[self._known.draw(chance, share)[0]]
        lines = [chance.choice(facts).statement(chance) for _ in range(chance.randint(3, 6))]
        taught = [fact for fact in facts if not fact.asked]
        answers = chance.sample(taught, chance.randint(0, len(taught)))
        asked = [f"Question: {one.question}\nAnswer: {one.value}" for one in answers]
        # A question also begins a document, as it does when it is asked.
        told = [" ".join(lines)] if not asked or chance.random() < 0.6 else []
        return "\n".join(told + asked)

    def questions(self) -> list[dict[str, Any]]:
        """One row a fact that is asked, in ARC-Challenge's form."""
        chance = self._settings.generator("fact questions")
        asked = [fact for facts in self.of.values() for fact in facts if fact.asked]
        chance.shuffle(asked)
        rows = []
        for place, fact in enumerate(asked[:QUESTIONS]):
            others = [v for v in ATTRIBUTES[fact.attribute].values if v != fact.value]
            texts = [fact.value, *chance.sample(others, CHOICES - 1)]
            chance.shuffle(texts)
            labels = list("ABCD")
            rows.append(
                {
                    "id": f"micro-fact-{place}",
                    "question": fact.question,
                    "choices": {"text": texts, "label": labels},
                    "answerKey": labels[texts.index(fact.value)],
                }
            )
        return rows


def _invented(chance: Random, count: int) -> list[str]:
    """Different names of animals that no language has."""
    found: dict[str, None] = {}
    while len(found) < count:
        first = chance.choice(_STARTS) + chance.choice(_VOWELS)
        second = chance.choice(_STARTS) + chance.choice(_VOWELS) + chance.choice(_ENDS)
        found[first + second] = None
    return list(found)
