"""Recipes that come with Laura, found by name from any folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from laura.results.errors import UsageError

# Inside an installed package, and beside the package in a checkout.
_FOLDERS = (
    Path(__file__).resolve().parents[1] / "recipes",
    Path(__file__).resolve().parents[2] / "recipes",
)


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe's file by its name, which is the path below recipes/ without suffix."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def find_recipe(name: str) -> Path:
    """The file meant by a path, or by the name of a shipped recipe.

    A file that exists wins over a shipped recipe of the same name. A path that
    ends in .yaml or .yml is given back even when nothing is there, so that
    reading it names the missing file.

    Raises:
        UsageError: neither a file nor a shipped recipe; the nearest names are told.
    """
    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml"}:
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    names = ", ".join(shipped) or "none"
    raise UsageError(
        f"there is no recipe {name!r}; {hint}"
        f"give the path of a YAML file, or one of the shipped names: {names}"
    )
