"""A claim: what is stated, where, of which settings, and how it is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from laura.study.claims.settings import Setting
from laura.study.claims.verdicts import Finding, Statement, look_at

Question = Literal["tuned", "equal learning", "updates", "search"]


@dataclass(frozen=True)
class Scope:
    """What a statement is about.

    Attributes:
        kind: How these are called where there are none.
        wanted: Whether it is about a setting, or about a pair of them.
        pairs: Whether it sets one setting beside another.
    """

    kind: str = "setting"
    wanted: Callable[..., bool] = lambda *settings: True
    pairs: bool = False

    def groups(self, settings: Sequence[Setting]) -> list[tuple[Setting, ...]]:
        """The settings, or ordered pairs of them, that the statement is about."""
        every = itertools.permutations(settings, 2 if self.pairs else 1)
        return [group for group in every if self.wanted(*group)]


@dataclass(frozen=True)
class Claimed:
    """A statement, and how it is looked at; the function's docstring says what is compared.

    Attributes:
        id: Short name.
        statement: What is claimed.
        source: Where it was claimed.
        question: Which of the judge's questions it asks; of updates and of the search apart.
        test: Which test judges it.
        look: Gives the contrasts of one setting, or of a pair of them.
        scope: Which settings it is about.
    """

    id: str
    statement: str
    source: str
    question: Question
    test: str
    look: Callable[..., list[Statement]]
    scope: Scope = Scope()

    def judge(self, settings: Sequence[Setting]) -> Finding:
        """The verdict over all settings that it is about."""
        return look_at(self.scope.groups(settings), self.look, self.scope.kind)


# Which test judges it, in words.
PAIRED = "paired by item and seed, Student's t over seeds"
PARTS = f"{PAIRED}; every part must hold (intersection-union)"
FRONT = "fronts over all rates, chosen on half of the items, told on the other; " + PAIRED
SEEDS = "Student's t over seeds"
