"""What may come next in an answer: what stood behind the same tokens before.

Answers repeat: names, numbers of the question, lines of code, phrases of answers before. A
step that has few answers to extend mostly reads weights, and then reads a few drafted tokens
besides at nearly no cost. Each draft is checked against the model's own choice, so the answer
is the very same, with fewer steps ("prompt lookup decoding").

The numbers below were seen in answers of SmolLM2-135M-Instruct to GSM8K and HumanEval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from laura.engine.packed import FEW_ROWS, filled_rows
from laura.engine.said import Said

# Weight of the newest token in the trust.
NEWEST = 0.125
# Where a drafted token is right, the next one is so at least this often.
GOES_ON = 0.65
# What a drafted token takes besides its row, in rows: drafts are attended to by calls of their own.
BESIDES = 0.75
# Rate of a pass with drafts over that without: those chosen as likeliest are right less often.
WORTH = 1.2
# With the token before them they still are few (slots.FEWEST_TOKENS).
MOST_DRAFTED = 6


@dataclass(frozen=True)
class Source:
    """Where a draft comes from.

    Attributes:
        said: Earlier answers; else this one and its prompt.
        length: Last tokens that stood there too.
        trust: How often what followed there proves right, until the answer itself shows it.
    """

    said: bool
    length: int
    trust: float


# The most telling first.
SOURCES = (
    Source(False, 3, 0.6),
    Source(True, 3, 0.6),
    Source(True, 2, 0.4),
    Source(False, 2, 0.4),
    Source(False, 1, 0.2),
)


class Drafts:
    """All tokens of one answer, and what may follow them.

    Args:
        prompt: Its first tokens.
        said: What earlier answers to the same tenant through the same adapter said.
    """

    def __init__(self, prompt: Sequence[int], said: Said | None = None) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._said = said
        self._trust = {source: source.trust for source in SOURCES}
        for token in prompt:
            self._append(token)

    def add(self, token: int) -> None:
        """The answer's next token; what would have been drafted in its place is judged."""
        source, first = self._found()
        if source is not None:
            self._trust[source] += NEWEST * ((first == token) - self._trust[source])
        self._append(token)

    def next(self, most: int) -> tuple[list[int], float]:
        """Up to so many tokens that may come next, and how likely each is right if those
        before it are; none where nothing like it stood before."""
        source, _ = self._found()
        if source is None:
            return [], 0.0
        trust = self._trust[source]
        if self._said is not None and source.said:
            return self._said.on(self._tokens, most), trust
        place = self._behind[tuple(self._tokens[-source.length :])]
        # What repeats itself goes on so, also beyond what there is.
        period = len(self._tokens) - place
        return [self._tokens[place + i % period] for i in range(most)], trust

    def _append(self, token: int) -> None:
        for source in SOURCES:
            if not source.said and len(self._tokens) >= source.length:
                self._behind[tuple(self._tokens[-source.length :])] = len(self._tokens)
        self._tokens.append(token)

    def _found(self) -> tuple[Source | None, int]:
        """The most telling source that knows this end, and which token followed there."""
        for source in SOURCES:
            end = tuple(self._tokens[-source.length :])
            if len(end) < source.length:
                continue
            if source.said:
                token = None if self._said is None else self._said.after(end)
                if token is not None:
                    return source, token
            elif (place := self._behind.get(end)) is not None:
                return source, self._tokens[place]
        return None, 0


def allot(sources: Sequence[tuple[Drafts, int]], rows: int, free_rows: int) -> list[list[int]]:
    """A draft for each answer: as many tokens as bring most for the time of the pass.

    Args:
        sources: Every answer's drafts, and how many tokens it may come to besides the next.
        rows: Rows of the pass without any draft.
        free_rows: See `device.free_rows`.
    """
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
