"""The micro world: everything its base has read, and what it is asked about it.

A world is made from its settings alone. Source text never shows how a problem of
the target domains is solved. What it shows of them are loose pieces, and these matter more
than they look. Under LoRA the embeddings stay frozen, so a token that pretraining never
showed cannot be learnt later, and LoRA would look worse than full finetuning for no deep
reason. Each piece of the target domains' texts is therefore shown, alone and in no order,
so that the base knows the tokens and nothing of how they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from laura.micro.events import Events
from laura.micro.facts import Facts
from laura.micro.pronouns import Pronouns
from laura.micro.settings import WorldSettings

NAMES = (
    "Mira", "Tolo", "Anka", "Beno", "Cora", "Dovi", "Elsa", "Faro", "Gila", "Hano", "Ivo", "Juna",
    "Kaja", "Lemo", "Nila", "Oren", "Pela", "Quin", "Rosa", "Sven", "Tila", "Uma", "Vito", "Wanda",
    "Xeno", "Yara", "Zeno", "Abel", "Bila", "Ceda", "Dina", "Egon",
)  # fmt: skip
_TIMES = (
    "In the morning", "After lunch", "At dusk", "Before the rain", "On market day", "Last winter",
    "Late at night", "During the feast",
)  # fmt: skip
_WALKS = (
    "walked to the river", "sat by the gate", "looked at the hills", "counted the clouds",
    "sang an old song", "read a long letter", "swept the steps", "watched the boats",
)  # fmt: skip
_MOODS = (
    "The air was cold and clear", "Nobody else was there", "A dog barked far away",
    "The lamps were not lit yet", "It smelled of smoke and apples", "The wind had turned",
    "Everything was quiet", "The road was still wet",
)  # fmt: skip
_CLOSINGS = (
    "So the day went by", "Nothing more happened", "It was a good day", "Then it grew dark",
    "Soon it was time to go home", "That was all",
)  # fmt: skip

# Shares of the documents. Much is loose pieces. While little of the world exists, most is about
# who is meant: a model that has not learnt by then to tell people apart does not learn it among
# many facts.
EARLY = {
    "facts": 0.18, "events": 0.05, "pronouns": 0.5, "scene": 0.04, "loose": 0.15, "chat": 0.08,
}  # fmt: skip
SHARES = {
    "facts": 0.37, "events": 0.09, "pronouns": 0.13, "scene": 0.08, "loose": 0.21, "chat": 0.12,
}  # fmt: skip
PLAIN = ("facts", "events", "pronouns", "scene")
LOOSE_PIECES = 30


def scene(chance: Random, names: Sequence[str]) -> str:
    """Three or four sentences about one person."""
    name = chance.choice(names)
    lines = [f"{chance.choice(_TIMES)} {name} {chance.choice(_WALKS)}."]
    lines += [f"{line}." for line in chance.sample(_MOODS, chance.randint(1, 2))]
    return " ".join([*lines, f"{chance.choice(_CLOSINGS)}."])


class Loose:
    """Pieces of other texts in no order.

    Args:
        pieces: Pieces with their own leading spaces; each is shown equally often.
        chance: Orders them.
    """

    def __init__(self, pieces: Sequence[str], chance: Random) -> None:
        self._pieces, self._chance = list(pieces), chance
        self._left: list[str] = []

    def line(self, count: int) -> str:
        """`count` pieces one after the other; all have been shown once before one returns."""
        taken = []
        for _ in range(count):
            if not self._left:
                self._left = self._chance.sample(self._pieces, len(self._pieces))
            taken.append(self._left.pop())
        return "".join(taken).strip() or "."


class World:
    """One world.

    Args:
        settings: What determines it.
    """

    def __init__(self, settings: WorldSettings | None = None) -> None:
        self.settings = settings or WorldSettings()
        self.names = NAMES[: self.settings.names]
        self.facts = Facts(self.settings)
        self.events = Events(self.settings, self.names)
        self.pronouns = Pronouns(self.settings, self.names)

    def documents(
        self,
        stream: str,
        pieces: Sequence[str] = (),
        share: float = 1.0,
        shares: Mapping[str, float] = SHARES,
    ) -> Iterator[dict[str, Any]]:
        """Source text without end, as rows {"text"} or, of conversations, {"messages"}.

        Args:
            stream: Name of the stream; another name gives other documents.
            pieces: Pieces of the target domains' texts; without any, only text of the
                world itself.
            share: Share of the entities, scripts and schemas that exist in it, commonest
                first: a small model learns nothing when all are new at once.
            shares: Share of the documents of each kind; without pieces, those of the
                world's own kinds alone count.
        """
        chance = self.settings.generator(f"documents {stream}")
        loose = Loose(pieces, chance)
        kinds = list(shares) if pieces else list(PLAIN)
        weights = [shares[kind] for kind in kinds]
        while True:
            kind = chance.choices(kinds, weights)[0]
            if kind == "chat":
                asked, told = loose.line(LOOSE_PIECES // 3), scene(chance, self.names)
                turns = (("user", asked), ("assistant", told))
                yield {"messages": [{"role": role, "content": text} for role, text in turns]}
            else:
                yield {"text": self._text(kind, chance, loose, share)}

    def _text(self, kind: str, chance: Random, loose: Loose, share: float) -> str:
        if kind == "facts":
            return self.facts.document(chance, share)
        if kind == "events":
            return self.events.document(chance, share)
        if kind == "pronouns":
            return self.pronouns.document(chance, share)
        if kind == "scene":
            return scene(chance, self.names)
        if chance.random() < 0.5:
            return loose.line(LOOSE_PIECES)
        # What was said is often said again: a base that reads on can look back.
        return "\n".join([loose.line(LOOSE_PIECES // 3)] * 3)


def text_of(row: Mapping[str, Any]) -> str:
    """A document's text; of a conversation, what is said in it."""
    return str(row.get("text") or "\n".join(m["content"] for m in row["messages"]))
