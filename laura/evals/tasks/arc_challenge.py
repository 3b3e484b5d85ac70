"""ARC-Challenge: science questions of school exams. Zero shots.

`acc_norm` leads, as on the leaderboards; the MosaicML Gauntlet, which Biderman
et al. 2024 used, averages plain accuracy, so `acc` is kept beside it.

Source: Clark et al. 2018, arXiv:1803.05457; prompt and metrics of lm-eval
0.4.13 (tasks/arc, version 1.0).
"""

from __future__ import annotations

from typing import Any

from laura.engine.requests import ScoreRequest
from laura.evals.scoring import ChoiceQuestion, row_fault, text_field, text_list

TASK = "arc_challenge"
VERSION = "1.0"
METRICS = ("acc", "acc_norm")


def question(row: dict[str, Any], index: int) -> ChoiceQuestion:
    """Turn a row (question, choices{text, label}, answerKey) into a question.

    Raises:
        DataError: a field is missing or the answer names no choice.
    """
    asked = text_field(row, "question", TASK, index)
    key = text_field(row, "answerKey", TASK, index)
    choices = row.get("choices")
    if not isinstance(choices, dict):
        raise row_fault(TASK, index, f"needs 'choices' with text and label, came {choices!r}")
    texts = text_list(choices.get("text"), "choices.text", TASK, index)
    labels = text_list(choices.get("label"), "choices.label", TASK, index)
    if len(texts) != len(labels):
        raise row_fault(TASK, index, f"has {len(texts)} choices but {len(labels)} labels")
    if key not in labels:
        raise row_fault(TASK, index, f"needs 'answerKey' among {labels}, came {key!r}")
    context = f"Question: {asked}\nAnswer:"
    return ChoiceQuestion(
        index=index,
        requests=tuple(ScoreRequest(context, f" {text}") for text in texts),
        gold=labels.index(key),
        choice_characters=tuple(len(text) for text in texts),
    )
