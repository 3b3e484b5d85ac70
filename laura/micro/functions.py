"""The target domain `code`: docstring to a small Python function, in HumanEval's form.

A function keeps some of the numbers, changes each, and puts them together.
Difficulty is the number of changes and the largest number named. The right
results in the unit tests come from Python functions here, never from running
the text of a solution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import add, gt, lt, mul
from random import Random
from typing import Any

from laura.micro.settings import check_ranges

LIMITS = {"steps": (1, 2), "largest": (2, 9)}
NAME = "solve"
TESTS = 5


@dataclass(frozen=True)
class Piece:
    """One part of a function: in words, as code (with a place for its input), and what it does."""

    words: str
    code: str
    does: Callable[[Any], Any]


@dataclass(frozen=True)
class Function:
    """What one function does."""

    keep: Piece
    changes: tuple[Piece, ...]
    end: Piece

    @property
    def key(self) -> str:
        """By it functions are told apart and divided between the splits."""
        return " | ".join(piece.code for piece in (self.keep, *self.changes, self.end))

    @property
    def prompt(self) -> str:
        """Head and docstring, without the line break.

        That and the indent are one token, which the solution begins with: at the
        beginning of an answer the indent alone would be a token no text ever shows.
        """
        changes = "".join(f", {change.words}" for change in self.changes)
        doc = f"Take the {self.keep.words}{changes}, and return {self.end.words}."
        return f'def {NAME}(xs):\n    """{doc}"""'

    @property
    def solution(self) -> str:
        """The line break, and the body."""
        value = "x"
        for change in self.changes:
            value = change.code.format(value if value == "x" else f"({value})")
        condition = f" if {self.keep.code}" if self.keep.code else ""
        return f"\n    return {self.end.code.format(f'[{value} for x in xs{condition}]')}\n"

    def __call__(self, numbers: list[int]) -> Any:
        """The right result."""
        kept = [number for number in numbers if self.keep.does(number)]
        for change in self.changes:
            kept = [change.does(number) for number in kept]
        return self.end.does(kept)

    def tests(self, chance: Random) -> str:
        """A HumanEval `check` of some lists, the empty one among them."""
        lists: list[list[int]] = [[]]
        lists += [[chance.randint(-9, 20) for _ in range(7)] for _ in range(TESTS - 1)]
        lines = [f"    assert candidate({numbers}) == {self(numbers)!r}" for numbers in lists]
        return "def check(candidate):\n" + "\n".join(lines) + "\n"


def functions(changes: int, largest: int) -> Iterator[Function]:
    """Every function of so many changes that names no number above `largest`.

    Raises:
        DataError: changes or numbers out of range.
    """
    check_ranges("code", {"steps": changes, "largest": largest}, LIMITS)
    for keep, end in product(_keeps(largest), _ENDS):
        for chosen in product(_changes(largest), repeat=changes):
            yield Function(keep, chosen, end)


def _keeps(largest: int) -> list[Piece]:
    found = [
        Piece("numbers", "", lambda x: True),
        Piece("even numbers", "x % 2 == 0", lambda x: x % 2 == 0),
        Piece("odd numbers", "x % 2 == 1", lambda x: x % 2 == 1),
    ]
    for n in range(1, largest + 1):
        found.append(Piece(f"numbers above {n}", f"x > {n}", partial(lt, n)))
        found.append(Piece(f"numbers below {n}", f"x < {n}", partial(gt, n)))
    return found


def _changes(largest: int) -> list[Piece]:
    found = [
        Piece("square each", "{0} * {0}", lambda x: x * x),
        Piece("negate each", "-{0}", lambda x: -x),
    ]
    for n in range(1, largest + 1):
        found.append(Piece(f"add {n} to each", f"{{0}} + {n}", partial(add, n)))
        found.append(Piece(f"subtract {n} from each", f"{{0}} - {n}", partial(add, -n)))
        if n > 1:
            found.append(Piece(f"multiply each by {n}", f"{{0}} * {n}", partial(mul, n)))
    return found


_ENDS = (
    Piece("them as a list", "{}", lambda xs: xs),
    Piece("their sum", "sum({})", sum),
    Piece("how many there are", "len({})", len),
    Piece("the largest, or 0", "max({}, default=0)", lambda xs: max(xs, default=0)),
    Piece("the smallest, or 0", "min({}, default=0)", lambda xs: min(xs, default=0)),
    Piece("them in rising order", "sorted({})", sorted),
    Piece("them in reverse", "{}[::-1]", lambda xs: xs[::-1]),
)
