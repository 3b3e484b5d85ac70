"""Reading a recipe: YAML with line numbers, overrides, every fault at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, WithJsonSchema

from laura.recipe.checks import check_recipe, own_faults, validate
from laura.recipe.document import MOST_VALUES, YamlDocument, yaml_text
from laura.recipe.sections import MeasureSection, Recipe, Section, short
from laura.recipe.stages import stage_faults
from laura.recipe.tasks import NAME_PATTERN
from laura.results.errors import Fault, RecipeError, StoreError


class _MeasureAlone(Section):
    """What `read_measure_section` reads."""

    measure: MeasureSection


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
    return recipe_of(YamlDocument.read(path), overrides, data_dir)


def parse_recipe(
    text: str,
    overrides: Iterable[str] = (),
    source: str = "recipe",
    data_dir: Path | None = None,
) -> Recipe:
    """Check recipe text; see `read_recipe`."""
    return recipe_of(YamlDocument.parse(text, source), overrides, data_dir)


def recipe_of(
    document: YamlDocument, overrides: Iterable[str] = (), data_dir: Path | None = None
) -> Recipe:
    """Check a document that is a recipe; see `read_recipe`."""
    document.override(overrides)
    recipe, found = check_recipe(document.data, data_dir)
    return document.accepted(recipe, found)


def stored_recipe(path: Path) -> Recipe:
    """The recipe of a study, whose user's task files need not lie here any more.

    Raises:
        StoreError: it cannot be read.
        RecipeError: its recipe is of another version of Laura.
    """
    try:
        document = YamlDocument.read(path, "restore it")
    except RecipeError as error:
        raise StoreError(f"{path}: {error.faults[0]}") from error
    return document.accepted(*validate(Recipe, document.data))


def read_measure_section(overrides: Iterable[str]) -> MeasureSection:
    """The `measure` section's defaults with `measure.key=value` overrides applied.

    Raises:
        RecipeError: an override is malformed, for another section, or out of range.
    """
    document = YamlDocument("--set", {"measure": {}})
    document.override(overrides)
    known = {"measure": document.data.pop("measure")}
    document.faults += [
        Fault(f"--set {name}", "only measure.key=value can be set here") for name in document.data
    ]
    made, found = validate(_MeasureAlone, known)
    faults = [*document.faults, *found, *own_faults(made)]
    if made is None or faults:
        raise RecipeError(faults, document.source)
    return made.measure


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that reads back equal."""
    return yaml_text(recipe.model_dump(mode="json"))


# ----- series -----


Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _section_or_file(value: object) -> object:
    if not isinstance(value, dict | str):
        raise ValueError(f"must be a section or a file, came {short(value)}")
    return value


Part = Annotated[
    Any,
    AfterValidator(_section_or_file),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]}),
]


class SeriesFile(Section):
    """Several settings carried out one after the other and judged together."""

    name: Name
    """Name of the series and of its folder."""
    common: dict[str, Any] = Field({})
    """What the settings share."""
    settings: dict[Name, Part] = Field(min_length=1)
    """The rest of each setting's recipe, or the file that it is."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Names where there is one already."""
        if "name" in self.common:
            yield "common.name", "is not needed: settings are called by their keys"
        for name, part in self.settings.items():
            if "name" in part and isinstance(part, dict):
                yield f"settings.{name}.name", f"is not needed: the setting is called {name}"


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
    document = YamlDocument.read(path)
    if "settings" not in document.data:
        return recipe_of(document, overrides, data_dir)
    data = document.data
    names = [str(name) for name in _mapping(data["settings"])]
    own, each, single = _dealt(overrides, names, document.faults)
    document.override(own)
    file, found = validate(SeriesFile, data)
    found += own_faults(file)
    recipes: dict[str, Recipe] = {}
    before: dict[str, Recipe | None] = {}
    values = 0
    for name, part in _mapping(data["settings"]).items():
        if not isinstance(part, dict | str):
            continue
        try:
            merged = _merged(str(name), part, data, Path(path).parent)
        except RecipeError as error:
            found += [Fault(f"settings.{name}", str(fault)) for fault in error.faults]
            continue
        values += _count(merged)
        if values > MOST_VALUES:
            problem = f"stand for more than {MOST_VALUES:,} values with what they share; split them"
            found.insert(0, Fault("settings", problem))
            break
        setting = YamlDocument(str(name), merged)
        setting.override([*each, *single.get(str(name), [])])
        recipe, wrong = check_recipe(setting.data, data_dir)
        wrong += stage_faults(recipe, before)
        before[str(name)] = None if wrong else recipe
        found += setting.faults
        found += [_moved(fault, setting, part, document.lines) for fault in wrong]
        if recipe is not None:
            recipes[str(name)] = recipe
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
        elif text.split("=")[0].strip().split(".")[0] in SeriesFile.model_fields:
            own.append(text)
        else:
            each.append(text)
    return own, each, single


def _merged(
    name: str, part: dict[str, Any] | str, data: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The whole recipe of a setting.

    Raises:
        RecipeError: what is wrong with the file that it is.
    """
    if isinstance(part, str):
        file = YamlDocument.read(folder / part)
        part = file.accepted(file.data, [])
    return {**_laid_over(_mapping(data.get("common")), part), "name": name}


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


def _count(value: object) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, below))


def _moved(fault: Fault, setting: YamlDocument, part: object, lines: dict[str, int]) -> Fault:
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


def recipe_schema() -> str:
    """JSON Schema of a recipe or a series, for editors (`laura schema`).

    What stands in a series' settings is half a recipe each and is checked when it is read.
    """
    shared = TypeAdapter[Any](Recipe | SeriesFile).json_schema()["$defs"]
    schema = {"anyOf": [shared.pop("Recipe"), shared.pop("SeriesFile")], "$defs": shared}
    # A description is one paragraph, whatever lines it takes in the source.
    return json.dumps(schema, indent=2).replace("\\n", " ") + "\n"
