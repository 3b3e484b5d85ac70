"""WinoGrande: which of two names fills the blank. Zero shots, partial scoring.

The text before the blank with each option filled in is the context, and the
text after the blank, the same for both, is what is scored. So there is nothing
to normalise by, and `acc` is the only metric; it leads.

`choice_characters` of the items counts each filled-in beginning, which is what
lm-eval calls the choice here.

Source: Sakaguchi et al. 2019, arXiv:1907.10641; partial scoring after Trinh
and Le 2018, arXiv:1806.02847; prompt and metric of lm-eval 0.4.13
(tasks/winogrande, version 1.0).
"""

from __future__ import annotations

from typing import Any

from laura.engine.requests import ScoreRequest
from laura.evals.scoring import ChoiceQuestion, row_fault, text_field

TASK = "winogrande"
VERSION = "1.0"
METRICS = ("acc",)


def question(row: dict[str, Any], index: int) -> ChoiceQuestion:
    """Turn a row (sentence with `_`, option1, option2, answer) into a question.

    Raises:
        DataError: a field is missing, there is no blank, nothing follows it, or
            the answer is neither 1 nor 2.
    """
    sentence = text_field(row, "sentence", TASK, index)
    options = [text_field(row, name, TASK, index) for name in ("option1", "option2")]
    before, blank, after = sentence.partition("_")
    if not blank or not after.strip() or not all(options):
        raise row_fault(
            TASK, index, f"needs a blank '_' with text after it and two options, came {row!r}"
        )
    answer = str(row.get("answer"))
    if answer not in ("1", "2"):
        raise row_fault(TASK, index, f"needs 'answer' 1 or 2, came {answer!r}")
    contexts = [before + option for option in options]
    return ChoiceQuestion(
        index=index,
        requests=tuple(ScoreRequest(context, f" {after.strip()}") for context in contexts),
        gold=int(answer) - 1,
        choice_characters=tuple(len(context) for context in contexts),
    )
