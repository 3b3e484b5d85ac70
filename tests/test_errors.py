"""The error tree: what a user can mend is one family, and each leaf is a standard exception."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import laura.results.errors
from laura.results.errors import (
    EXIT_BUG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_USER,
    Fault,
    LauraError,
    RecipeError,
)

LEAVES = [
    value
    for value in vars(laura.results.errors).values()
    if inspect.isclass(value) and issubclass(value, LauraError) and value is not LauraError
]


@pytest.mark.parametrize("leaf", LEAVES)
def test_each_leaf_is_a_standard_exception_too(leaf: type[LauraError]) -> None:
    standard = [base for base in leaf.__mro__ if base.__module__ == "builtins"]
    assert standard[0] is not Exception, "a Python programmer can catch it without knowing Laura"


def test_the_drawn_tree_is_the_tree() -> None:
    assert laura.results.errors.__doc__
    for leaf in LEAVES:
        base = leaf.__mro__[2].__name__
        assert f"── {leaf.__name__} ({base})" in laura.results.errors.__doc__


def test_exit_codes() -> None:
    assert (EXIT_DONE, EXIT_BUG, EXIT_USER, EXIT_INTERRUPTED) == (0, 1, 2, 130)


def test_faults_as_people_read_them() -> None:
    faults = [Fault("arms.lora.rank", "must be whole", 7), Fault("seeds", "is empty")]
    error = RecipeError(faults, "my.yaml")
    assert str(error).splitlines() == [
        "my.yaml has 2 mistakes:",
        "  - arms.lora.rank (line 7): must be whole",
        "  - seeds: is empty",
    ]
    assert error.faults == faults
    assert str(RecipeError(faults[:1])).startswith("recipe has 1 mistake:")


def test_nobody_raises_the_root() -> None:
    """`LauraError` itself says nothing; code raises a leaf."""
    package = Path(laura.results.errors.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                assert name not in {"LauraError", "Exception"}, f"{path}:{node.lineno}"
