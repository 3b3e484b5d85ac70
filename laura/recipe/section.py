"""What every section of a recipe shares: strictness, kinds of numbers, and its own checks."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Place = tuple[str | int, ...]


def short(value: object) -> str:
    """A value as it came, in at most about sixty characters."""
    try:
        text = _REPR.repr(value)
    except ValueError:
        return "a number too long to show"
    return text if len(text) <= 60 else text[:57] + "..."


_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxother, _REPR.maxlevel, _REPR.maxlong = 60, 60, 3, 40


def twice(values: Iterable[Hashable]) -> str:
    """What is wrong with a list that names a value twice; empty where none does."""
    seen = set()
    for value in values:
        if value in seen:
            return f"names {value} twice; keep one"
        seen.add(value)
    return ""


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys, wrong types and infinities are faults.

    What a key means stands below it and becomes its description in the reference and in
    the JSON Schema.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after the first studies; see `identity`."""

    def identity(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """What tells this section from another one, as JSON values.

        A field of `later` counts only where it is not at its default, so that runs which
        were made before the field existed keep their IDs.
        """
        fields = type(self).model_fields
        unset = {name for name in self.later if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude={*exclude, *unset})

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together: the key, dotted, and the reason.

        They are told by `checks.py` and do not keep the section from being made.
        """
        return ()


def refuse(faults: Mapping[Place, str]) -> NoReturn:
    """Refuse a section from within its validator, each fault at its own key.

    Raises:
        ValidationError: always; pydantic adds the way to the section.
    """
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("fault", "{problem}", {"problem": problem}),
            "loc": place,
            "input": None,
        }
        for place, problem in faults.items()
    ]
    raise ValidationError.from_exception_data("section", details)
