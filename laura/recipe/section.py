"""What every section of a recipe shares: strictness, and the kinds of numbers in it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys, wrong types and infinities are faults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
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
