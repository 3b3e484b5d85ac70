"""Reading a recipe: YAML with line numbers, overrides, every fault at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from laura.recipe.faults import (
    DottedPath,
    SectionType,
    cross_faults,
    dotted,
    file_faults,
    measure_faults,
    short,
    validate,
)
from laura.recipe.grids import expand_grids
from laura.recipe.sections import MeasureSection, Recipe
from laura.recipe.tasks import NAME_PATTERN
from laura.results.errors import Fault, RecipeError

LARGEST_WHOLE_NUMBER = 10**15
LINES_REMEMBERED = 10_000
RECIPE_HINT = "give the path of a YAML recipe, such as recipes/smollm2-gsm8k.yaml"
SOURCE_KEYS = {"train", "validation", "test", "source_text"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but numbers are what everyone means by them.

    `1e-4` is a number, `1e6` a whole one, and a fault in a number has a line.
    """

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        try:
            value = int(self.construct_yaml_int(node))
        except (ValueError, IndexError) as error:
            raise self._fault(node, "is not a whole number") from error
        if abs(value) > LARGEST_WHOLE_NUMBER:
            raise self._fault(node, "is too large a number")
        return value

    def construct_real(self, node: yaml.ScalarNode) -> int | float:
        try:
            value = float(self.construct_yaml_float(node))
        except (ValueError, IndexError) as error:
            raise self._fault(node, "is not a number") from error
        whole = value.is_integer() and abs(value) <= LARGEST_WHOLE_NUMBER
        return int(value) if whole and "e" in str(node.value).lower() else value

    def _fault(self, node: yaml.ScalarNode, problem: str) -> yaml.constructor.ConstructorError:
        text = f"{short(node.value)} {problem}"
        return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_real)
# What PyYAML raises for tagged nonsense, such as `!!bool maybe`, beside its own errors.
_YAML_ERRORS = (
    yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError,
    OverflowError,
)  # fmt: skip


def read_recipe(
    path: str | Path, overrides: Iterable[str] = (), data_dir: Path | None = None
) -> Recipe:
    """Read a recipe file, apply `section.key=value` overrides, and check it whole.

    Args:
        path: The file.
        overrides: Each as `section.key=value`.
        data_dir: Data folder, where files of the user's own tasks may lie too; None
            means `LAURA_DATA`, if set.

    Raises:
        RecipeError: the file is missing, is not YAML, or has faults; every
            fault is listed with its dotted path, line and what is allowed.
    """
    return parse_recipe(recipe_text(path), overrides, str(path), data_dir)


def parse_recipe(
    text: str,
    overrides: Iterable[str] = (),
    source: str = "recipe",
    data_dir: Path | None = None,
) -> Recipe:
    """Check recipe text; see `read_recipe`."""
    faults: list[Fault] = []
    data, lines = load_mapping(text, source, faults)
    overridden = apply_overrides(data, overrides, faults)
    recipe, found = check_recipe(data, data_dir)
    faults += placed(found, lines, overridden)
    if faults or recipe is None:
        raise RecipeError(faults, source)
    return recipe


def check_recipe(
    data: dict[str, Any], data_dir: Path | None = None
) -> tuple[Recipe | None, list[Fault]]:
    """A recipe of values that were read, or every fault in them; see `read_recipe`."""
    made = expand_grids(data)
    recipe, found = validate(Recipe, made.data)
    named = os.environ.get("LAURA_DATA")
    folder = data_dir or (Path(named) if named else None)
    found = [*found, *cross_faults(made.data, found), *file_faults(data, folder)]
    return recipe, [*made.faults, *made.at_origin(found)]


def read_section(path: Path, kind_of: Callable[[dict[str, Any]], type[SectionType]]) -> SectionType:
    """Read a YAML file that is one section, such as a user's own task.

    Args:
        path: The file.
        kind_of: Which section it should be, told from what stands in the file; a
            `ValueError` it raises is the one fault of the file's key `kind`.

    Raises:
        RecipeError: as `read_recipe`.
    """
    faults: list[Fault] = []
    source = str(path)
    data, lines = load_mapping(recipe_text(path, "give the path of a YAML file"), source, faults)
    try:
        kind = kind_of(data)
    except ValueError as error:
        raise RecipeError([Fault("kind", str(error), lines.get(("kind",)))], source) from error
    section, found = validate(kind, data)
    faults += placed(found, lines, set())
    if faults or section is None:
        raise RecipeError(faults, source)
    return section


def read_measure_section(overrides: Iterable[str]) -> MeasureSection:
    """The `measure` section's defaults with `measure.key=value` overrides applied.

    Raises:
        RecipeError: an override is malformed, for another section, or out of range.
    """
    faults: list[Fault] = []
    data: dict[str, Any] = {"measure": {}}
    apply_overrides(data, overrides, faults)
    for name in data.keys() - {"measure"}:
        faults.append(Fault(f"--set {name}", "only measure.key=value can be set here"))
    section, found = validate(MeasureSection, data["measure"])
    faults += [Fault(f"measure.{fault.path}", fault.problem) for fault in found]
    faults += measure_faults(section) if section is not None else ()
    if faults or section is None:
        raise RecipeError(faults, "--set")
    return section


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that reads back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_schema() -> str:
    """JSON Schema of a recipe or a series, for editors (`laura schema`).

    What stands in a series' settings is half a recipe each and is checked when it is read.
    """
    recipe = Recipe.model_json_schema()
    shared = recipe.pop("$defs")
    part = {"type": "object"}
    series = {
        "type": "object",
        "description": "Several settings carried out one after the other and judged together.",
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "common": {**part, "description": "What the settings share."},
            "settings": {
                "type": "object",
                "minProperties": 1,
                "description": "The rest of each setting's recipe, or the file that it is.",
                "additionalProperties": {"anyOf": [part, {"type": "string"}]},
            },
        },
        "required": ["name", "settings"],
        "additionalProperties": False,
    }
    return json.dumps({"anyOf": [recipe, series], "$defs": shared}, indent=2) + "\n"


def recipe_text(path: str | Path, hint: str = RECIPE_HINT) -> str:
    """The text of a file; `hint` says what to give instead of one that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fault = Fault("file", f"cannot be read ({reason}); {hint}")
        raise RecipeError([fault], str(path)) from error


def load_mapping(
    text: str, source: str, faults: list[Fault], most_lines: int = LINES_REMEMBERED
) -> tuple[dict[str, Any], dict[DottedPath, int]]:
    """What stands in a YAML text, and the line of each key.

    Beyond `most_lines` keys have no line, and are not missed where one is given twice.
    """
    lines: dict[DottedPath, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        line = mark.line + 1 if mark else None
        raise RecipeError([Fault("file", f"is not YAML: {problem}", line)], source) from error
    if not isinstance(data, dict):
        kind = "nothing" if data is None else type(data).__name__
        raise RecipeError([Fault("file", f"must hold sections (key: value), came {kind}")], source)
    if node is not None:
        _walk_lines(node, (), lines, faults, most_lines)
    return data, lines


def _walk_lines(
    node: yaml.Node,
    path: DottedPath,
    lines: dict[DottedPath, int],
    faults: list[Fault],
    most_lines: int,
    depth: int = 0,
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    # Aliases can make a few lines stand for billions of values, or for themselves.
    if depth > 20 or len(lines) > most_lines:
        return
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            here = (*path, name)
            lines[here] = key.start_mark.line + 1
            if name in seen and name != "<<":
                problem = "is given twice; keep one of them"
                faults.append(Fault(dotted(here), problem, lines[here]))
            seen.add(name)
            _walk_lines(value, here, lines, faults, most_lines, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk_lines(value, (*path, index), lines, faults, most_lines, depth + 1)


def apply_overrides(
    data: dict[str, Any], overrides: Iterable[str], faults: list[Fault]
) -> set[DottedPath]:
    """Change `data` in place; give the paths that no longer come from the file."""
    paths: set[DottedPath] = set()
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            problem = f"--set takes section.key=value, came {override!r}"
            faults.append(Fault("--set", problem))
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except _YAML_ERRORS:
            faults.append(Fault(f"--set {key}", f"the value {short(text)} is not YAML"))
            continue
        path = _put(data, parts, value)
        if path is None:
            faults.append(Fault(f"--set {key}", "leads through a value that is not a section"))
        else:
            paths.add(path)
    return paths


def _put(data: dict[str, Any], parts: list[str], value: object) -> DottedPath | None:
    """Set a value deep inside; its path, or None when something on the way is no section."""
    place = data
    path: list[str] = []
    while len(parts) > 1:
        key = _longest_key(place, parts)
        parts = parts[key.count(".") + 1 :]
        if not parts:
            place[key] = value
            return (*path, key)
        below = place.get(key)
        if isinstance(below, str) and key in SOURCE_KEYS:
            below = {"source": below}
        if below is None:
            below = {}
        if not isinstance(below, dict):
            return None
        # A copy, since a YAML alias may share the section with another place.
        place[key] = dict(below)
        place = place[key]
        path.append(key)
    place[parts[0]] = value
    return (*path, parts[0])


def _longest_key(place: dict[str, Any], parts: list[str]) -> str:
    """The key meant next: names of arms may hold dots, so the longest that exists."""
    names = [".".join(parts[:count]) for count in range(len(parts), 1, -1)]
    return next((name for name in names if name in place), parts[0])


def placed(
    faults: Iterable[Fault], lines: dict[DottedPath, int], overridden: set[DottedPath]
) -> list[Fault]:
    """Faults with their lines, or with the remark that --set brought them."""
    by_text = {dotted(path): line for path, line in reversed(lines.items())}
    set_texts = {dotted(path) for path in overridden}
    placed = []
    for fault in faults:
        path = fault.path
        while path not in by_text and path not in set_texts and "." in path:
            path = path.rpartition(".")[0]
        above_set = any(text.startswith(f"{fault.path}.") for text in set_texts)
        if path in set_texts or (above_set and fault.path not in by_text):
            placed.append(Fault(fault.path, f"{fault.problem} (given by --set)"))
        else:
            placed.append(Fault(fault.path, fault.problem, by_text.get(path)))
    return placed
