"""Plain text without anything to remember: small scenes, and loose pieces of other domains.

Loose pieces matter more than they look. Under LoRA the embeddings stay frozen, so
a token that pretraining never showed cannot be learnt later, and LoRA would look
worse than full finetuning for no deep reason. Each piece of the target domains'
texts is therefore shown, alone and in no order, so that the base knows the tokens
and nothing of how they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

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
