"""An exact-match task in Python: laura evaluate MODEL --tasks docs/examples/small_sums.py

The model writes until a stop text; the last number in what it wrote must be the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from laura.engine.requests import GenerateRequest

TITLE = "Small sums, exact match"
ROWS = "small_sums.jsonl"  # beside this file; {question, answer}
METRICS = ("exact_match",)
EXAMPLES = "Question: What is 3 plus 4?\nAnswer: 7\n\nQuestion: What is 20 minus 5?\nAnswer: 15\n\n"


@dataclass(frozen=True)
class Question:
    """One question: its row's number from 0, what the model continues, the right answer."""

    index: int
    requests: tuple[GenerateRequest, ...]
    answer: str


def prepare(rows, ask):
    """The version of the prompts, and a question of every row."""
    # `ask.chat()` gives the model's chat template: conversation in, prompt out.
    found = []
    for index, row in enumerate(rows):
        prompt = f"{EXAMPLES}Question: {row['question']}\nAnswer:"
        request = GenerateRequest(prompt, stop=("\n",), max_new_tokens=16)
        found.append(Question(index, (request,), str(row["answer"]).replace(",", "")))
    return "1", found


def grades(questions, answers):
    """Of every question the item, with each metric, and what is kept beside it."""
    for question, (answer,) in zip(questions, answers, strict=True):
        numbers = re.findall(r"-?[0-9][0-9,]*", answer.text)
        right = bool(numbers) and numbers[-1].replace(",", "") == question.answer
        item = {"index": question.index, "exact_match": int(right), "tokens": answer.tokens}
        yield item, [{**item, "text": answer.text, "target": question.answer}]
