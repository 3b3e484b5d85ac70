"""The target domain `math`: word problems with worked answers, in GSM8K's form.

Difficulty is the number of steps and the largest number in a problem. Two
problems with the same numbers and steps are the same one, whoever it is told of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

from laura.micro.settings import check_ranges

LIMITS = {"steps": (1, 4), "largest": (3, 99)}

_PEOPLE = ("Mira", "Tolo", "Anka", "Beno", "Cora", "Dovi", "Elsa", "Faro", "Gila", "Hano")
_THINGS = ("plums", "coins", "cards", "shells", "stamps", "eggs", "pens", "beads")
_MORE = ("finds {n} more", "buys {n} more", "gets {n} more from a friend")
_LESS = ("gives away {n}", "loses {n}", "sells {n}")
_TIMES = {2: "doubles them", 3: "triples them"}


@dataclass(frozen=True)
class Problem:
    """A number of things, and what is done to it: signed amounts, or ("x", factor)."""

    start: int
    changes: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """By it problems are told apart and divided between the splits."""
        return f"{self.start} " + " ".join(f"{sign}{amount}" for sign, amount in self.changes)

    def tell(self, chance: Random) -> tuple[str, str]:
        """Question and worked answer, told of someone drawn."""
        name, thing = chance.choice(_PEOPLE), chance.choice(_THINGS)
        told, worked, now = [f"{name} has {self.start} {thing}."], [], self.start
        for place, (sign, amount) in enumerate(self.changes):
            lead = "She" if place == 0 else "Then she"
            told.append(f"{lead} {_words(sign, amount, chance)}.")
            after = applied(now, sign, amount)
            worked.append(f"{now} {sign} {amount} = {after}.")
            now = after
        told.append(f"How many {thing} does she have now?")
        return " ".join(told), " ".join(worked) + f"\n#### {now}"


def _words(sign: str, amount: int, chance: Random) -> str:
    if sign == "*":
        return _TIMES[amount]
    return chance.choice(_MORE if sign == "+" else _LESS).format(n=amount)


def applied(number: int, sign: str, amount: int) -> int:
    """The number after one step."""
    if sign == "*":
        return number * amount
    return number + amount if sign == "+" else number - amount


def problems(steps: int, largest: int) -> Iterator[Problem]:
    """Every problem of so many steps in which no number exceeds `largest`, none below 1.

    Raises:
        DataError: steps or numbers out of range.
    """
    check_ranges("math", {"steps": steps, "largest": largest}, LIMITS)
    operands = range(1, min(9, largest) + 1)
    moves = [(sign, n) for sign in "+-" for n in operands] + [("*", n) for n in _TIMES]
    for start in range(2, largest + 1):
        for changes in product(moves, repeat=steps):
            if _stays_within(start, changes, largest):
                yield Problem(start, changes)


def _stays_within(start: int, changes: tuple[tuple[str, int], ...], largest: int) -> bool:
    now = start
    for sign, amount in changes:
        now = applied(now, sign, amount)
        if not 1 <= now <= largest:
            return False
    return True
