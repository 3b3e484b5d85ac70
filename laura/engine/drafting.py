"""Prompt lookup decoding: an answer's next tokens are drafted from what stood behind the same
n-gram before.

Answers repeat: names, numbers of the question, lines of code, phrases of answers before. A
step that has few answers to extend mostly reads weights, and then reads a few drafted tokens
besides at nearly no cost. Each draft is checked against the model's own choice, so the answer
is the very same, with fewer steps.

Answers to one tenant through one adapter resemble one another. Which token followed which
n-gram is kept for each tenant and adapter alone, so that no answer is drafted from another
tenant's.

The numbers below were seen in answers of SmolLM2-135M-Instruct to GSM8K and HumanEval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice

from laura.engine.model_runner import FEW_ROWS, filled_rows

# Weight of the newest token in the trust.
NEWEST = 0.125
# Where a drafted token is right, the next one is so at least this often.
GOES_ON = 0.65
# What a drafted token takes besides its row, in rows: drafts are attended to by calls of their own.
BESIDES = 0.75
# Rate of a pass with drafts over that without: those chosen as likeliest are right less often.
WORTH = 1.2
# With the token before them they still are few (adapter_slots.FEWEST_TOKENS).
MOST_DRAFTED = 6
# A token follows so many others: the longer ones tell more.
LENGTHS = (3, 2)
# Of one tenant and adapter, about 110 bytes each; two for every token of an answer.
MOST_NGRAMS = 2**13
MOST_TABLES = 32
# Ids of tokens are below this.
TOKEN_BITS = 24


@dataclass(frozen=True)
class DraftSource:
    """Where a draft comes from.

    Attributes:
        earlier: Earlier answers; else this one and its prompt.
        length: Last tokens that stood there too.
        trust: How often what followed there proves right, until the answer itself shows it.
    """

    earlier: bool
    length: int
    trust: float


# The most telling first.
SOURCES = (
    DraftSource(False, 3, 0.6),
    DraftSource(True, 3, 0.6),
    DraftSource(True, 2, 0.4),
    DraftSource(False, 2, 0.4),
    DraftSource(False, 1, 0.2),
)


class NgramTable:
    """Which token followed the same ones last; the n-grams not seen for longest are forgotten."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}

    def __len__(self) -> int:
        """How many n-grams are kept."""
        return len(self._next)

    def add(self, tokens: Sequence[int], start: int) -> None:
        """Remember an answer.

        Args:
            tokens: Its prompt and itself.
            start: Where it begins.
        """
        first = max(start, len(tokens) - MOST_NGRAMS // len(LENGTHS))  # more would not be kept
        for place in range(first, len(tokens)):
            for length in LENGTHS:
                if place >= length:
                    key = _key(tokens[place - length : place])
                    self._next.pop(key, None)
                    self._next[key] = tokens[place]
        # In one walk: what was deleted in front is walked over again by every new one.
        for key in list(islice(self._next, max(0, len(self._next) - MOST_NGRAMS))):
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


class NgramTables:
    """Tables by tenant and adapter; those not used for longest are forgotten."""

    def __init__(self) -> None:
        self._of: dict[Hashable, NgramTable] = {}

    def of(self, key: Hashable) -> NgramTable:
        """The table of the answers of this key."""
        table = self._of.pop(key) if key in self._of else NgramTable()
        self._of[key] = table
        while len(self._of) > MOST_TABLES:
            del self._of[next(iter(self._of))]
        return table


class Drafter:
    """All tokens of one answer, and what may follow them.

    Args:
        prompt: Its first tokens.
        earlier: Of earlier answers to the same tenant through the same adapter.
    """

    def __init__(self, prompt: Sequence[int], earlier: NgramTable | None = None) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._earlier = earlier
        self._trust = {source: source.trust for source in SOURCES}
        # Looked at when a draft is wanted: beside many others no answer is drafted.
        self._unread, self._answer = list(prompt), len(prompt)

    def add(self, token: int) -> None:
        """The answer's next token."""
        self._unread.append(token)

    def next(self, most: int) -> tuple[list[int], float]:
        """Up to so many tokens that may come next, and how likely each is right if those
        before it are; none where nothing like it stood before."""
        self._read()
        source, _ = self._found()
        if source is None:
            return [], 0.0
        trust = self._trust[source]
        if self._earlier is not None and source.earlier:
            return self._earlier.on(self._tokens, most), trust
        place = self._behind[tuple(self._tokens[-source.length :])]
        # What repeats itself goes on so, also beyond what there is.
        period = len(self._tokens) - place
        return [self._tokens[place + i % period] for i in range(most)], trust

    def _read(self) -> None:
        """Take in the tokens added; what would have been drafted in their places is judged."""
        for token in self._unread:
            if len(self._tokens) >= self._answer:
                source, first = self._found()
                if source is not None:
                    self._trust[source] += NEWEST * ((first == token) - self._trust[source])
            for source in SOURCES:
                if not source.earlier and len(self._tokens) >= source.length:
                    self._behind[tuple(self._tokens[-source.length :])] = len(self._tokens)
            self._tokens.append(token)
        self._unread.clear()

    def _found(self) -> tuple[DraftSource | None, int]:
        """The most telling source that knows this end, and which token followed there."""
        for source in SOURCES:
            end = tuple(self._tokens[-source.length :])
            if len(end) < source.length:
                continue
            if source.earlier:
                token = None if self._earlier is None else self._earlier.after(end)
                if token is not None:
                    return source, token
            elif (place := self._behind.get(end)) is not None:
                return source, self._tokens[place]
        return None, 0


def allot(sources: Sequence[tuple[Drafter, int]], rows: int, free_rows: int) -> list[list[int]]:
    """A draft for each answer: as many tokens as bring most for the time of the pass.

    Args:
        sources: Every answer's drafts, and how many tokens it may come to besides the next.
        rows: Rows of the pass without any draft.
        free_rows: See `device.free_rows`.
    """
    # In a pass of so many rows even drafts that were all right would cost more than they bring.
    most_rate = WORTH * (free_rows + rows)
    if rows * BESIDES >= free_rows and most_rate >= _time(rows, 0, free_rows):
        return [[] for _ in sources]
    drafts, offers = [], []
    for number, (source, most) in enumerate(sources):
        draft, trust = source.next(min(most, MOST_DRAFTED))
        drafts.append(draft)
        goes_on = max(trust, GOES_ON)
        offers += [(trust * goes_on**depth, number) for depth in range(len(draft))]
    offers.sort(reverse=True)
    brought, best, count = float(rows), WORTH * rows / _time(rows, 0, free_rows), 0
    for drafted, (likely, _) in enumerate(offers, 1):
        brought += likely
        rate = brought / _time(rows, drafted, free_rows)
        if rate > best:
            best, count = rate, drafted
    taken = Counter(number for _, number in offers[:count])
    return [draft[: taken[number]] for number, draft in enumerate(drafts)]


def _time(rows: int, drafted: int, free_rows: int) -> float:
    """How long a pass takes, in rows: few take as long as FEW_ROWS."""
    return free_rows + max(FEW_ROWS, filled_rows(rows + drafted)) + BESIDES * drafted


def _key(tokens: Sequence[int]) -> int:
    key = len(tokens)
    for token in tokens:
        key = key << TOKEN_BITS | token
    return key
