"""A series: several settings carried out one after the other and judged together.

A setting is a domain, a regime and its data; the paper has four (code and math, by
instruction finetuning and by continued pretraining). The file:

    name: micro-paper
    common:                 # what the settings share; optional
      base: {model: micro}
    settings:
      code-instruct:        # the rest of a recipe, laid over `common`
        domain: code
        ...
      math-instruct: math.yaml   # or a recipe of its own, beside this file

Sections are merged key by key; `null` takes away what `common` has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.recipe.checks import check_recipe
from laura.recipe.document import Document
from laura.recipe.reading import recipe_of
from laura.recipe.section import short
from laura.recipe.sections import Recipe
from laura.recipe.tasks import NAME_PATTERN
from laura.results.errors import Fault, RecipeError

_KEYS = ("name", "common", "settings")


@dataclass(frozen=True)
class Series:
    """Several settings that are judged together.

    Attributes:
        name: Name of the series and of its folder.
        settings: Name of each setting to carry out, and its recipe of the same name.
        names: All settings of the series, in order.
    """

    name: str
    settings: dict[str, Recipe]
    names: tuple[str, ...]


def read_study(
    path: str | Path, overrides: Iterable[str] = (), data_dir: Path | None = None
) -> Recipe | Series:
    """Read a file that is a recipe or a series, and check it whole.

    Args:
        path: The file.
        overrides: Each as `section.key=value`. In a series they are for every setting,
            unless they begin with `settings.NAME.` or `common.`.
        data_dir: Data folder, where files of the user's own tasks may lie too.

    Raises:
        RecipeError: every fault, with its dotted path, line and what is allowed.
    """
    document = Document.read(path)
    if "settings" not in document.data:
        return recipe_of(document, overrides, data_dir)
    data = document.data
    names = [str(name) for name in _mapping(data["settings"])]
    own, each, single = _dealt(overrides, names, document.faults)
    document.override(own)
    found = list(_outer_faults(data))
    recipes: dict[str, Recipe] = {}
    for name, part in _mapping(data["settings"]).items():
        merged, wrong = _merged(str(name), part, data, Path(path).parent)
        if merged is not None:
            setting = Document(str(name), merged)
            setting.override([*each, *single.get(str(name), [])])
            recipe, wrong = check_recipe(setting.data, data_dir)
            wrong = [_moved(fault, setting, part, document.lines) for fault in wrong]
            wrong = [*setting.faults, *wrong]
            if recipe is not None and not wrong:
                recipes[str(name)] = recipe
        found += wrong
    # A fault of what the settings share is told once.
    found = list(dict.fromkeys(found))
    return document.accepted(Series(str(data.get("name")), recipes, tuple(recipes)), found)


def _dealt(
    overrides: Iterable[str], names: list[str], faults: list[Fault]
) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Overrides of the series itself, of every setting, and of single ones by name."""
    own, each = list[str](), list[str]()
    single: dict[str, list[str]] = {name: [] for name in names}
    for text in overrides:
        # A setting's name may hold dots, so the longest that fits is meant.
        fits = [name for name in names if text.startswith(f"settings.{name}.")]
        if fits:
            name = max(fits, key=len)
            single[name].append(text.removeprefix(f"settings.{name}."))
        elif text.startswith("settings."):
            problem = f"names no setting; the series has: {', '.join(names)}"
            faults.append(Fault(f"--set {text.split('=')[0]}", problem))
        elif text.split("=")[0].strip().split(".")[0] in _KEYS:
            own.append(text)
        else:
            each.append(text)
    return own, each, single


def _outer_faults(data: dict[str, Any]) -> Iterable[Fault]:
    for key in data:
        if key not in _KEYS:
            yield Fault(str(key), f"unknown key; a series has: {', '.join(_KEYS)}")
    name = data.get("name")
    if name is None:
        yield Fault("name", "is needed but missing")
    elif not (isinstance(name, str) and re.fullmatch(NAME_PATTERN, name)):
        yield Fault("name", f"must be letters, digits, '.', '_' or '-', came {short(name)}")
    if not isinstance(data.get("common", {}), dict):
        yield Fault("common", f"must be a section (key: value), came {short(data['common'])}")
    settings = data["settings"]
    if not isinstance(settings, dict) or not settings:
        yield Fault("settings", f"must name at least one setting, came {short(settings)}")
    for key in _mapping(settings):
        if not (isinstance(key, str) and re.fullmatch(NAME_PATTERN, key)):
            yield Fault(f"settings.{key}", "must be a name of letters, digits, '.', '_' or '-'")


def _merged(
    name: str, part: object, data: dict[str, Any], folder: Path
) -> tuple[dict[str, Any] | None, list[Fault]]:
    """The whole recipe of a setting, or what is wrong with it as a part of the series."""
    where = f"settings.{name}"
    if isinstance(part, str):
        try:
            file = Document.read(folder / part)
            part = file.accepted(file.data, [])
        except RecipeError as error:
            return None, [Fault(where, str(fault)) for fault in error.faults]
        part.pop("name", None)  # the file has one of its own, for when it stands alone
    if not isinstance(part, dict):
        return None, [Fault(where, f"must be a section or a file, came {short(part)}")]
    if "name" in part:
        return None, [Fault(f"{where}.name", f"is not needed: the setting is called {name}")]
    if "name" in _mapping(data.get("common")):
        return None, [Fault("common.name", "is not needed: settings are called by their keys")]
    return {**_laid_over(_mapping(data.get("common")), part), "name": name}, []


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two sections as one, merged key by key; `None` above takes away what is below."""
    merged = dict(below)
    for key, value in above.items():
        if value is None and key in below:
            del merged[key]
        elif isinstance(value, dict):
            merged[key] = _laid_over(_mapping(below.get(key)), value)
        else:
            merged[key] = value
    return merged


def _moved(fault: Fault, setting: Document, part: object, lines: dict[str, int]) -> Fault:
    """A fault of a setting's recipe, with the path at which its cause stands in the series."""
    name, path = setting.source, fault.path
    if path in setting.overridden:
        return setting.placed([fault])[0]
    while path:
        for place in (f"settings.{name}", "common"):
            if f"{place}.{path}" in lines:
                return Fault(f"{place}.{fault.path}", fault.problem)
        path = path.rpartition(".")[0]
    file = f"in {part}: " if isinstance(part, str) else ""
    return Fault(f"settings.{name}.{fault.path}", file + fault.problem)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
