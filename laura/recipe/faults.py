"""What pydantic finds wrong in a section, in words: what came, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from laura.recipe.sections import NOT_IN_GRIDS, FullArm, LoraArm, Place, Section, short
from laura.results.errors import Fault

SectionType = TypeVar("SectionType", bound=Section)
METHODS: dict[Any, type[Section]] = {"full": FullArm, "lora": LoraArm}


def validate(
    kind: type[SectionType], data: dict[str, Any]
) -> tuple[SectionType | None, list[Fault]]:
    """The section, or every fault pydantic finds in it, in our words."""
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        items = error.errors(include_url=False)
        found = [Fault(_path(item["loc"]), _problem(item, kind)) for item in items]
        return None, list(dict.fromkeys(found))


def _is_method(location: Place, place: int) -> bool:
    """Whether a part is the method by which pydantic chose the kind of an arm."""
    return place == 2 and location[0] == "arms" and location[2] in METHODS


def _path(location: Place) -> str:
    """A place as people write it, `arms.lora.rank`, without the parts that pydantic adds."""
    parts = [str(part) for place, part in enumerate(location) if not _is_method(location, place)]
    added = ("[key]", "literal[", "list[")
    return ".".join(part for part in parts if not part.startswith(added)) or "recipe"


def _problem(item: Any, kind: type[Section]) -> str:
    came = f", came {short(item['input'])}"
    context = item.get("ctx", {})
    match item["type"]:
        case "fault":
            return str(item["msg"])
        case "value_error":
            return str(context.get("error", item["msg"]))
        case "extra_forbidden":
            return _unknown(item["loc"], kind)
        case "missing":
            return "is needed but missing"
        case "union_tag_not_found":
            return "needs a method: full or lora"
        case "union_tag_invalid":
            return f"method must be full or lora, came {short(context.get('tag'))}"
        case "literal_error":
            return f"must be {context['expected']}{came}"
        case "string_pattern_mismatch":
            allowed = "letters, digits, '.', '_' or '-', starting with one of the first two"
            return f"must be {allowed}{came}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a section (key: value){came}"
    message = str(item["msg"]).replace("Input should be", "must be")
    return message[:1].lower() + message[1:] + came


def _unknown(location: Place, kind: type[Section]) -> str:
    """What to write instead of a key that there is not."""
    key = str(location[-1])
    fields = _section_at(location[:-1], kind).model_fields
    allowed = sorted(fields)
    if location[0] == "arms" and "grid" in location[3:-1]:
        if key == "learning_rates":
            return (
                "cannot stand in a grid: give learning_rates beside it; values that need other "
                "rates are an arm of their own"
            )
        if key == "method":
            return "cannot stand in a grid: write an arm for each method"
        allowed = [name for name in allowed if name not in NOT_IN_GRIDS]
    here = f"allowed here: {', '.join(allowed)}"
    for method, arm in METHODS.items():
        if location[0] == "arms" and key in arm.model_fields and key not in fields:
            return f"is a key of {method} arms only; {here}"
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"unknown key; {f'did you mean {near[0]}? ' if near else ''}{here}"


def _section_at(location: Place, kind: type[Section]) -> type[Section]:
    """The kind of section that stands at a place: keys are followed, names and indexes passed."""
    for place, part in enumerate(location):
        if _is_method(location, place):
            kind = METHODS[part]
        elif part in kind.model_fields:
            kind = next(_sections(kind.model_fields[str(part)].annotation), kind)
    return kind


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
