"""Write docs/recipe.md, the reference of every recipe key, from laura/recipe/sections.py itself.

Use: make docs
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from laura.recipe.sections import (
    AnalysisSection,
    BaseSection,
    BudgetSection,
    ColumnsSection,
    DataSection,
    ExternalPoint,
    Extra,
    FullArm,
    LoraArm,
    MeasureSection,
    OftArm,
    Recipe,
    ReplaySource,
    RewriteSection,
    SearchSection,
    Section,
    Source,
    TrainSection,
)

TARGET = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
HEADER = """\
# Recipe reference

<!-- Written by scripts/write_recipe_reference.py (make docs); do not edit by hand. -->

A recipe is one YAML 1.2 file. Keys without a default are needed; unknown keys are errors. Numbers
may be written as `1e-4` or `1e6`; `010` is ten, `1:30` and `no` are text. Any value can be
overridden on the command line with `--set section.key=value`. `laura schema` prints the JSON
Schema for editors.
"""
PARTS: dict[str, type[Section]] = {
    "base": BaseSection,
    "data": DataSection,
    "data: a source": Source,
    "data: columns of a source": ColumnsSection,
    "data: a source of replay": ReplaySource,
    "data: rewrite": RewriteSection,
    "budget": BudgetSection,
    "arms: NAME with method lora": LoraArm,
    "arms: NAME with method oft": OftArm,
    "arms: NAME with method full": FullArm,
    "arms: NAME: external": ExternalPoint,
    "train": TrainSection,
    "search": SearchSection,
    "measure": MeasureSection,
    "analysis": AnalysisSection,
    "measure.extras: NAME": Extra,
}
LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def main() -> None:
    """Write the file."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET.name}")


def reference() -> str:
    """The whole reference as Markdown."""
    top = ["## Top level", "", *_table(Recipe)]
    rest: list[str] = []
    for title, section in PARTS.items():
        rest += ["", f"## {title}", "", (section.__doc__ or "").strip(), "", *_table(section)]
    return "\n".join([HEADER, *top, *rest]) + "\n"


def _table(section: type[Section]) -> list[str]:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        cells = (f"`{name}`", _type(field), _default(field), _meaning(name, field))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _type(field: FieldInfo) -> str:
    text = _name(field.annotation)
    limits = _limits(field.metadata)
    return f"{text}, {limits}" if limits else text


def _limits(metadata: list[Any]) -> str:
    return " and ".join(
        f"{sign} {_number(getattr(item, name))}"
        for item in metadata
        for name, sign in LIMITS.items()
        if isinstance(getattr(item, name, None), int | float)
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(part) for part in arguments)
    if origin is list:
        return "list of " + _name(arguments[0]).replace("number", "numbers", 1)
    if origin is tuple:
        return f"{len(arguments)} times {_name(arguments[0])}"
    if origin is dict:
        below = _name(arguments[1])
        return f"NAME: {below}" if get_origin(arguments[1]) is list else "NAME: section"
    if hasattr(kind, "__metadata__"):
        for item in kind.__metadata__:
            if isinstance(item, WithJsonSchema) and item.json_schema:
                return _choices(item.json_schema)
        limits = _limits([part for item in kind.__metadata__ for part in _parts(item)])
        return f"{_name(kind.__origin__)} {limits}".strip()
    if isinstance(kind, type) and issubclass(kind, Source):
        return "source, or its name"
    if isinstance(kind, type) and issubclass(kind, Section):
        return "section"
    names = {Any: "values", bool: "true, false", int: "whole number", float: "number", str: "text"}
    return names.get(kind, "null")


def _choices(schema: dict[str, Any]) -> str:
    """The values a JSON Schema lists; the others are told by the key's meaning."""
    ways = schema.get("anyOf", [schema])
    listed = ", ".join(f"`{name}`" for way in ways for name in way.get("enum", ()))
    return listed if len(ways) == 1 else f"{listed} or text"


def _parts(item: Any) -> list[Any]:
    return list(item.metadata) if isinstance(item, FieldInfo) else [item]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if field.default is PydanticUndefined or isinstance(field.default, Section):
        return ""
    return f"`{json.dumps(field.default)}`"


def _meaning(name: str, field: FieldInfo) -> str:
    return " ".join((field.description or "").split()) or f"See [{name}](#{name})."


if __name__ == "__main__":
    main()
