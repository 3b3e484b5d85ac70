"""Word problems of the micro laboratory, graded exactly as GSM8K's (see `gsm8k.py`).

No worked examples. `measure.micro_prompt` says in which form they are asked:
`chat`, as instruct training shows them, or `text`, as they stand in the running
text of continued pretraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from laura.engine.requests import GenerateRequest
from laura.evals.scoring import TaskSettings, drawn_words, several
from laura.evals.tasks import gsm8k

TASK = "micro_math"
METRICS = gsm8k.METRICS
SAMPLED_METRICS = gsm8k.SAMPLED_METRICS
NEW_TOKENS = 64

grades = gsm8k.grades


def prepare(
    rows: Sequence[dict[str, Any]], ask: TaskSettings
) -> tuple[str, list[gsm8k.NumberQuestion]]:
    """Version of the result, and the questions."""
    form = ask.section.micro_prompt
    chat = ask.chat() if form == "chat" else None
    questions = gsm8k.questions(rows, (), 0, NEW_TOKENS, chat=chat)
    if chat is None:
        prompts = [row["question"] for row in rows]  # the line break is the model's to write
        questions = [
            replace(one, requests=(GenerateRequest(prompt, (), NEW_TOKENS),))
            for one, prompt in zip(questions, prompts, strict=True)
        ]
    version = f"1; {form}; {NEW_TOKENS} new tokens{drawn_words(ask.extra)}"
    return version, several(questions, TASK, ask.extra)
