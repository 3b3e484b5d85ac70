"""Grids inside arms: an arm with lists of values stands for one arm a combination.

They are written out when a recipe is read, before anything else sees it, so that
everything after that knows plain arms only. The names of the arms that came from one
grid are kept in `search.families`.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from laura.recipe.arms import Arm
from laura.recipe.search import value_words
from laura.results.errors import Fault

MOST_ARMS = 200
MOST_NAME = 64  # of recipe_tasks.NAME_PATTERN


@dataclass
class Expansion:
    """A recipe's data with its grids written out.

    Attributes:
        data: What was read, with plain arms.
        faults: What is wrong with the grids themselves.
        origins: For each arm made here, the arm it came from and the place of each of
            its values in the lists there.
    """

    data: dict[str, Any]
    faults: list[Fault] = field(default_factory=list)
    origins: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)

    def at_origin(self, faults: Iterable[Fault]) -> list[Fault]:
        """Faults of arms made here told where the user wrote them, each once."""
        placed: dict[Any, Fault] = {}
        for fault in faults:
            path = self._origin(fault.path)
            # An arm's own mistake comes back with every combination.
            placed.setdefault(path if path != fault.path else fault, replace(fault, path=path))
        return list(placed.values())

    def _origin(self, path: str) -> str:
        for name in sorted(self.origins, key=len, reverse=True):
            source, places = self.origins[name]
            if path == f"arms.{name}":
                return f"arms.{source}"
            if path.startswith(f"arms.{name}."):
                rest = path[len(f"arms.{name}.") :]
                key, dot, below = rest.partition(".")
                if key in places:
                    rest = f"grid.{key}.{places[key]}{dot}{below}"
                return f"arms.{source}.{rest}"
        return path


def expand_grids(data: dict[str, Any]) -> Expansion:
    """Write out the grid of every arm that has one.

    Args:
        data: A recipe as it was read, which may hold anything; not changed.
    """
    arms = data.get("arms")
    if not isinstance(arms, dict) or not any(map(_has_grid, arms.values())):
        return Expansion(data)
    made = Expansion(dict(data))
    plain: dict[Any, Any] = {}
    families: dict[str, list[str]] = {}
    for name, arm in arms.items():
        if not _has_grid(arm):
            plain[name] = arm
            continue
        new = _arms_of(str(name), arm, made)
        if not new:
            plain[name] = {key: value for key, value in arm.items() if key != "grid"}
        for other in [other for other in new if other in arms or other in plain]:
            problem = f"makes an arm called {other}, and there is another of that name; rename one"
            made.faults.append(Fault(f"arms.{name}.grid", problem))
            del new[other], made.origins[other]
        plain |= new
        if new:
            families[str(name)] = list(new)
    made.data["arms"] = plain
    _note_families(families, made)
    return made


def _has_grid(arm: Any) -> bool:
    return isinstance(arm, dict) and arm.get("grid") is not None


def _note_families(families: dict[str, list[str]], made: Expansion) -> None:
    """Write the families into the section `search`, unless that is no section."""
    search = made.data.get("search")
    search = {} if search is None else search
    if not isinstance(search, dict):
        return
    written = search.get("families")
    written = {} if written is None else written
    if not isinstance(written, dict):
        return
    for name in [name for name in families if name in written]:
        problem = "is a family already, made by the arm's grid; leave it out"
        made.faults.append(Fault(f"search.families.{name}", problem))
    made.data["search"] = {**search, "families": {**written, **families}}


def _arms_of(name: str, arm: dict[str, Any], made: Expansion) -> dict[str, Any]:
    """The arms of one grid, by name; what is wrong with it is noted and left out."""
    rest = {key: value for key, value in arm.items() if key != "grid"}
    values = dict(_values(name, arm, made.faults))
    if not values:
        return {}
    count = math.prod(map(len, values.values()))
    if count > MOST_ARMS:
        problem = f"makes {count:,} arms, at most {MOST_ARMS}; shorten its lists"
        made.faults.append(Fault(f"arms.{name}.grid", problem))
        values = {key: listed[:1] for key, listed in values.items()}
    found: dict[str, Any] = {}
    for places in itertools.product(*(range(len(listed)) for listed in values.values())):
        chosen = dict(zip(values, places, strict=True))
        settings = {key: values[key][place] for key, place in chosen.items()}
        parts = [f"{key}-{value_words(value)}" for key, value in settings.items()]
        new = "-".join([name, *parts])
        if len(new) > MOST_NAME and len(name) <= MOST_NAME:
            problem = f"makes the name {new}, at most {MOST_NAME} characters; shorten the arm's"
            made.faults.append(Fault(f"arms.{name}.grid", problem))
            break
        found[new] = {**rest, **settings}
        made.origins[new] = (name, chosen)
    return found


def _values(name: str, arm: dict[str, Any], faults: list[Fault]) -> Iterable[tuple[str, list[Any]]]:
    """Each key of a grid with its values, as far as both make sense."""
    grid, where = arm["grid"], f"arms.{name}.grid"
    if not isinstance(grid, dict) or not grid:
        came = "an empty section" if grid == {} else repr(grid)[:60]
        problem = f"must hold lists of values, as in rank: [4, 16], came {came}"
        faults.append(Fault(where, problem))
        return
    allowed = _settings(arm.get("method"))
    for key, values in grid.items():
        problem = _key_problem(key, arm, allowed) or _list_problem(values)
        if problem:
            faults.append(Fault(f"{where}.{key}", problem))
        else:
            yield key, values


def _settings(method: Any) -> list[str] | None:
    """What an arm of this method can be given in a grid; None for no such method."""
    for kind in get_args(get_args(Arm)[0]):
        if method in get_args(kind.model_fields["method"].annotation):
            return [f for f in kind.model_fields if f not in ("method", "grid", "learning_rates")]
    return None


def _key_problem(key: Any, arm: dict[str, Any], allowed: list[str] | None) -> str:
    if key == "learning_rates":
        return (
            "cannot stand in a grid: give learning_rates beside it; values that need other rates "
            "are an arm of their own"
        )
    if key == "method":
        return "cannot stand in a grid: write an arm for each method"
    if allowed is not None and key not in allowed:
        near = difflib.get_close_matches(str(key), allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key; {hint}allowed here: {', '.join(sorted(allowed))}"
    return "stands beside the grid too; keep one of them" if key in arm else ""


def _list_problem(values: Any) -> str:
    if not isinstance(values, list) or not values:
        return f"must be a list with at least one value, came {repr(values)[:60]}"
    if any(isinstance(value, dict) for value in values):
        return "must list plain values, came a section"
    words = [value_words(value) for value in values]
    twice = next((word for word in words if words.count(word) > 1), None)
    return f"names {twice} twice" if twice is not None else ""
