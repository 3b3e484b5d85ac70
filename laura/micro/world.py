"""The micro world: everything its base has read, and what it is asked about it.

A world is made from its settings alone. Source text never shows how a problem of
the target domains is solved; see `filler.py` for what it does show of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from laura.micro.events import Events
from laura.micro.facts import Facts
from laura.micro.filler import Loose, scene
from laura.micro.pronouns import Pronouns
from laura.micro.settings import WorldSettings

NAMES = (
    "Mira", "Tolo", "Anka", "Beno", "Cora", "Dovi", "Elsa", "Faro", "Gila", "Hano", "Ivo", "Juna",
    "Kaja", "Lemo", "Nila", "Oren", "Pela", "Quin", "Rosa", "Sven", "Tila", "Uma", "Vito", "Wanda",
    "Xeno", "Yara", "Zeno", "Abel", "Bila", "Ceda", "Dina", "Egon",
)  # fmt: skip

# Shares of the documents. Much is loose pieces: see `filler.py`. While little of the world
# exists, most is about who is meant: a model that has not learnt by then to tell people
# apart does not learn it among many facts.
EARLY = {
    "facts": 0.18, "events": 0.05, "pronouns": 0.5, "scene": 0.04, "loose": 0.15, "chat": 0.08,
}  # fmt: skip
SHARES = {
    "facts": 0.37, "events": 0.09, "pronouns": 0.13, "scene": 0.08, "loose": 0.21, "chat": 0.12,
}  # fmt: skip
PLAIN = ("facts", "events", "pronouns", "scene")
LOOSE_PIECES = 30


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
