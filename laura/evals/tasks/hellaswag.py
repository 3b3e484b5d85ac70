"""HellaSwag: which of four endings follows. Zero shots.

`acc_norm` leads: the endings differ much in length, and it is the number that
leaderboards quote for this task. The MosaicML Gauntlet, which Biderman et al.
2024 used, averages plain accuracy; `acc` is kept beside it on every item.

Source: Zellers et al. 2019, arXiv:1905.07830; prompt and metrics of lm-eval
0.4.13 (tasks/hellaswag, version 1.0).
"""

from __future__ import annotations

import re
from typing import Any

from laura.engine.requests import ScoreRequest
from laura.evals.scoring import ChoiceQuestion, row_fault, text_field, text_list

TASK = "hellaswag"
VERSION = "1.0"
METRICS = ("acc", "acc_norm")


def clean(text: str) -> str:
    """Remove WikiHow's marks: `[title]` becomes a full stop, other brackets go."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def question(row: dict[str, Any], index: int) -> ChoiceQuestion:
    """Turn a row (activity_label, ctx_a, ctx_b, endings, label) into a question.

    Raises:
        DataError: a field is missing or the label names no ending.
    """
    activity = text_field(row, "activity_label", TASK, index)
    first = text_field(row, "ctx_a", TASK, index)
    second = text_field(row, "ctx_b", TASK, index)
    context = clean(f"{activity}: {first} {second.capitalize()}")
    endings = text_list(row.get("endings"), "endings", TASK, index)
    choices = text_list([clean(ending) for ending in endings], "endings (cleaned)", TASK, index)
    label = str(row.get("label"))
    if label not in [str(place) for place in range(len(choices))]:
        raise row_fault(TASK, index, f"needs 'label' 0 to {len(choices) - 1}, came {label!r}")
    return ChoiceQuestion(
        index=index,
        requests=tuple(ScoreRequest(context, f" {choice}") for choice in choices),
        gold=int(label),
        choice_characters=tuple(len(choice) for choice in choices),
    )
