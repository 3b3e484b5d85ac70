"""What may come next in an answer: what stood behind the same tokens before.

Answers repeat: names, numbers of the question, lines of code. A step that has few answers to
extend mostly reads weights, and then reads a few drafted tokens besides at nearly no cost.
Each draft is checked against the model's own choice, so the answer is the very same, with
fewer steps ("prompt lookup decoding").

No answer is drafted from another: what a tenant is told owes nothing to its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

# Tokens that must be equal before a place, the most telling first; and how often what stands
# behind such a place proves right, until the answer itself shows it (SmolLM2-135M-Instruct:
# GSM8K and HumanEval answers).
LENGTHS = (3, 2, 1)
FIRST_TRUST = {3: 0.6, 2: 0.4, 1: 0.2}
# Weight of the newest token in the trust.
NEWEST = 0.125
# A drafted token takes as long as so many rows: it is attended to by a call of its own.
ROWS_OF_ONE = 1.5
# With the token before them they still are few (slots.FEWEST_TOKENS).
MOST_DRAFTED = 6


class Drafts:
    """All tokens of one answer, and where the same ones stood last.

    Args:
        prompt: Its first tokens.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._trust = dict(FIRST_TRUST)
        for token in prompt:
            self._append(token)

    def add(self, token: int) -> None:
        """The answer's next token; what would have been drafted in its place is judged."""
        length, place = self._found()
        if length:
            right = self._tokens[place] == token
            self._trust[length] += NEWEST * (right - self._trust[length])
        self._append(token)

    def next(self, most: int) -> tuple[list[int], float]:
        """Up to so many tokens that may come next, and how likely each is right if those
        before it are; none where nothing like it stood before."""
        length, place = self._found()
        if not length:
            return [], 0.0
        # What repeats itself goes on so, also beyond what there is.
        period = len(self._tokens) - place
        return [self._tokens[place + i % period] for i in range(most)], self._trust[length]

    def _append(self, token: int) -> None:
        for length in LENGTHS:
            if len(self._tokens) >= length:
                self._behind[tuple(self._tokens[-length:])] = len(self._tokens)
        self._tokens.append(token)

    def _found(self) -> tuple[int, int]:
        """How many last tokens stood somewhere before, and the place behind them; 0 for none."""
        for length in LENGTHS:
            place = self._behind.get(tuple(self._tokens[-length:]))
            if place is not None:
                return length, place
        return 0, 0


def allot(sources: Sequence[tuple[Drafts, int]], rows: int, free_rows: int) -> list[list[int]]:
    """A draft for each answer, as far as its tokens are worth their rows of a pass.

    A pass takes as long as its rows and `free_rows` more. A drafted token is worth it where it
    brings more for its time than the pass does anyhow.

    Args:
        sources: Every answer's drafts, and how many tokens it may come to besides the next.
        rows: Rows of the pass without any draft.
        free_rows: See `device.free_rows`.
    """
    drafts, offers = [], []
    for number, (source, most) in enumerate(sources):
        draft, trust = source.next(min(most, MOST_DRAFTED))
        drafts.append(draft)
        offers += [(trust ** (depth + 1), number) for depth in range(len(draft))]
    taken, taken_rows = [0] * len(drafts), float(rows)
    for likely, number in sorted(offers, reverse=True):
        if likely * (taken_rows + free_rows) < ROWS_OF_ONE * taken_rows:
            break
        taken[number] += 1
        taken_rows += ROWS_OF_ONE
    return [draft[:count] for draft, count in zip(drafts, taken, strict=True)]
