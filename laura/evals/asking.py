"""What a generation task is handed to make its prompts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from laura.recipe.sections import Extra, MeasureSection

Message = dict[str, str]
Chat = Callable[[list[Message]], str]
"""Turns a conversation into the text after which the model writes its next answer."""


@dataclass(frozen=True)
class Ask:
    """How a task is asked.

    Attributes:
        section: The recipe's `measure` section.
        rows: The task's rows of another split, such as those worked examples come from.
        chat: Gives the model's chat form; an error where it has none, so it is
            only called where it is wanted.
        extra: What an extra wants beyond the plain task: several samples.
    """

    section: MeasureSection
    rows: Callable[[str], Sequence[dict[str, Any]]]
    chat: Callable[[], Chat]
    extra: Extra | None = None
