"""What earlier answers said, for drafts of later ones (drafts.py).

Answers to one tenant through one adapter resemble one another: the same phrases, the same
form. Which token followed which is kept for each tenant and adapter alone, so that no answer is
drafted from another tenant's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import islice

# A token follows so many others: the longer ones tell more.
LENGTHS = (3, 2)
# Of one tenant and adapter, about 110 bytes each; two for every token of an answer.
MOST_PLACES = 2**13
MOST_BOOKS = 32
# Ids of tokens are below this.
TOKEN_BITS = 24


class Said:
    """Which token followed the same ones last; the places not seen for longest are forgotten."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}

    def __len__(self) -> int:
        """How many places are kept."""
        return len(self._next)

    def add(self, tokens: Sequence[int], start: int) -> None:
        """Remember an answer.

        Args:
            tokens: Its prompt and itself.
            start: Where it begins.
        """
        first = max(start, len(tokens) - MOST_PLACES // len(LENGTHS))  # more would not be kept
        for place in range(first, len(tokens)):
            for length in LENGTHS:
                if place >= length:
                    key = _key(tokens[place - length : place])
                    self._next.pop(key, None)
                    self._next[key] = tokens[place]
        # In one walk: what was deleted in front is walked over again by every new one.
        for key in list(islice(self._next, max(0, len(self._next) - MOST_PLACES))):
            del self._next[key]

    def after(self, end: Sequence[int]) -> int | None:
        """What followed these very tokens; None where they did not come."""
        return self._next.get(_key(end))

    def on(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to so many tokens that may follow, each behind those before it."""
        end, found = list(tokens[-LENGTHS[0] :]), list[int]()
        while len(found) < most:
            behind = (self.after(end[-length:]) for length in LENGTHS if len(end) >= length)
            token = next((one for one in behind if one is not None), None)
            if token is None:
                break
            found.append(token)
            end.append(token)
        return found


class Books:
    """What was said, by tenant and adapter; those not used for longest are forgotten."""

    def __init__(self) -> None:
        self._of: dict[Hashable, Said] = {}

    def of(self, key: Hashable) -> Said:
        """What answers of this key said."""
        said = self._of.pop(key) if key in self._of else Said()
        self._of[key] = said
        while len(self._of) > MOST_BOOKS:
            del self._of[next(iter(self._of))]
        return said


def _key(tokens: Sequence[int]) -> int:
    key = len(tokens)
    for token in tokens:
        key = key << TOKEN_BITS | token
    return key
