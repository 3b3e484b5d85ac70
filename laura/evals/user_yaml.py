"""What stands in a user's own YAML task, checked whole: see docs/examples/."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from laura.evals.field_templates import FieldPath, Template
from laura.recipe.sections import Section, SourceField

KINDS = ("multiple_choice", "exact_match")


def _template(text: str) -> str:
    Template.parse(text)
    return text


def _choices(value: str | list[str]) -> str | list[str]:
    if isinstance(value, str):
        FieldPath.parse(value)
        return value
    if len(value) < 2:
        raise ValueError(f"needs a field's name, or a list of two or more, came {value!r}")
    return [_template(text) for text in value]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    return text


TemplateText = Annotated[str, AfterValidator(_template)]
ChoiceTexts = Annotated[str | list[str], AfterValidator(_choices)]
PatternText = Annotated[str, AfterValidator(_pattern)]


class TaskFile(Section):
    """What both kinds of task have."""

    title: str | None = Field(
        None, min_length=1, description="Name for tables and charts; null for the file's name."
    )
    data: SourceField = Field(
        description="JSON Lines file (also .gz) relative to this file, or a named set, a "
        "benchmark with its split, or a Hub data set."
    )
    prompt: TemplateText = Field(description="What the model reads; {field} is a row's field.")
    shots: int = Field(0, ge=0, le=64, description="Worked examples before each question.")
    examples: SourceField | None = Field(
        None,
        description="Where worked examples come from, the first rows; null for the first rows "
        "of `data`, which are then not measured.",
    )
    separator: str = Field("\n\n", description="What stands after each worked example.")
    delimiter: str = Field(" ", description="What stands between a prompt and its answer.")


class ChoiceFile(TaskFile):
    """A multiple-choice task: the most likely choice is the model's answer."""

    kind: Literal["multiple_choice"] = Field(description="multiple_choice")
    choices: ChoiceTexts = Field(
        description="Field that is the list of choices, such as choices[text], or a list of "
        "templates."
    )
    labels: ChoiceTexts | None = Field(
        None, description="The choices' names, where the answer is one: a field or a list."
    )
    answer: TemplateText = Field(description="Which choice is right; see `answer_is`.")
    answer_is: Literal["index", "number", "letter", "text", "label"] | None = Field(
        None,
        description="What `answer` gives: the choice's index from 0, its number from 1, its "
        "letter from A, its text, or its label; null finds out, and refuses what could be two.",
    )
    metric: Literal["acc", "acc_norm"] = Field(
        "acc", description="The metric that leads; both are measured."
    )

    @field_validator("answer_is")
    @classmethod
    def _labels_are_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value == "label" and "labels" in info.data and info.data["labels"] is None:
            raise ValueError("label needs labels, the field or list that holds them")
        return value


class MatchFile(TaskFile):
    """An exact-match task: the model writes, and what it wrote must equal the answer."""

    kind: Literal["exact_match"] = Field(description="exact_match")
    answer: TemplateText = Field(description="The right answer.")
    example_answer: TemplateText | None = Field(
        None, description="The answer as worked examples show it; null for `answer`."
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        description='Texts that end the model\'s answer, as ["\\n"]; [] for none.'
    )
    max_new_tokens: int = Field(ge=1, description="Longest answer, in tokens.")
    extract: PatternText | None = Field(
        None,
        description="Regular expression that finds the answer in what the model wrote: its "
        "first group that matched, or all of it where it has none; null for the whole text.",
    )
    take: Literal["first", "last"] = Field("first", description="Which match of `extract` counts.")
    remove: list[PatternText] = Field(
        [], description="Regular expressions taken out of both sides, one after the other."
    )
    ignore_case: bool = Field(False, description="Whether case does not matter.")
    strip: bool = Field(True, description="Whether blanks at both ends do not matter.")
    chat: bool = Field(
        False,
        description="Ask in the model's chat template: the prompt is the user's turn, worked "
        "examples are earlier turns.",
    )


def kind_of(data: dict[str, Any]) -> type[TaskFile]:
    """Which of the two a file is.

    Raises:
        ValueError: `kind` is absent or none of them.
    """
    kind = data.get("kind")
    kinds: dict[Any, type[TaskFile]] = {"multiple_choice": ChoiceFile, "exact_match": MatchFile}
    if not isinstance(kind, str) or kind not in kinds:
        came = f"came {kind!r}" if "kind" in data else "is needed but missing"
        raise ValueError(f"must be {' or '.join(KINDS)}; {came}")
    return kinds[kind]
