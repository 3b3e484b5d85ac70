"""Reading a recipe: YAML with line numbers, overrides, every fault at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from laura.recipe.checks import check_recipe, own_faults
from laura.recipe.document import YamlDocument, yaml_text
from laura.recipe.faults import validate
from laura.recipe.sections import MeasureSection, Recipe, Section
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
