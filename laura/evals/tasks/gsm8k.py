"""GSM8K: word problems answered in words, graded by strict match.

The prompt is some worked training problems, then the question; the answer is
generated greedily until "Question:", "</s>" or "<|im_end|>", and counts when
the first `#### NUMBER` in it is the right number (`exact_match`). Beside it
`flexible_extract` takes the last number of the answer, wherever it stands.

Which worked problems. lm-eval 0.4.13 draws other ones for every question:
question i gets the i-th draw of `Random(1234).sample(training rows, shots)`.
Then no two prompts share a beginning and each has to be read in full. Laura
shows every question the first training rows, so that the engine reads them
once; it is lm-eval's prompt with `fewshot_config: {sampler: first_n}`, equal
character by character (a test proves it). The other way is `Shots.SAMPLED`,
equal to lm-eval's default, also tested. The version of the result says which.

How it is asked. `plain` is lm-eval's prompt. `chat` puts the question alone into the
model's chat template, worked problems as earlier turns: the form in which instruct
training shows a problem.

Source: Cobbe et al. 2021, arXiv:2110.14168; prompt, filters and metric of
lm-eval 0.4.13 (tasks/gsm8k/gsm8k.yaml, version 3.0).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.evals.scoring import (
    Chat,
    TaskSettings,
    conversation,
    drawn_words,
    row_fault,
    several,
    text_field,
    told,
)
from laura.results.errors import DataError
from laura.results.task_result import Item

TASK = "gsm8k"
METRICS = ("exact_match", "flexible_extract")
SAMPLED_METRICS = ("majority",)  # beside them, where an extra draws several answers
TRAINING_SPLIT = "train"
STOP = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
SHOT_SEED = 1234  # lm-eval's fewshot_random_seed

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


class Shots(StrEnum):
    """Which worked problems stand before a question."""

    FIRST = "first"
    SAMPLED = "sampled"


@dataclass(frozen=True)
class NumberQuestion:
    """One question.

    Attributes:
        index: Row number in the data file, from 0.
        requests: What the engine continues: one greedy answer, or an extra's samples.
        answer: The data's answer, ending in `#### NUMBER`.
        k: The pass@k that an extra wants.
    """

    index: int
    requests: tuple[GenerateRequest, ...]
    answer: str
    k: tuple[int, ...] = ()


def prepare(rows: Sequence[dict[str, Any]], ask: TaskSettings) -> tuple[str, list[NumberQuestion]]:
    """Version of the result, and the questions, as the recipe's `measure` section wants them."""
    section = ask.section
    sampler = Shots(section.gsm8k_sampler)
    training = ask.rows(TRAINING_SPLIT) if section.gsm8k_shots else []
    chat = ask.chat() if section.gsm8k_prompt == "chat" else None
    shots, new_tokens = section.gsm8k_shots, section.gsm8k_tokens
    found = questions(rows, training, shots, new_tokens, sampler, chat)
    form = "; chat" if chat else ""
    version = f"3.0; {shots} shots, {sampler}; {new_tokens} new tokens{form}"
    return version + drawn_words(ask.extra), several(found, TASK, ask.extra)


def questions(
    rows: Sequence[dict[str, Any]],
    training_rows: Sequence[dict[str, Any]],
    shots: int,
    max_new_tokens: int,
    choice: Shots = Shots.FIRST,
    chat: Chat | None = None,
) -> list[NumberQuestion]:
    """Turn rows (question, answer) into questions.

    Args:
        rows: The first rows of the test split, in order; with `Shots.SAMPLED`
            the draws depend on it.
        training_rows: The whole training split; may be empty for zero shots.
        shots: Worked problems before each question, 0 or more.
        max_new_tokens: Longest answer, in tokens.
        choice: Which worked problems.
        chat: Turns a conversation into the prompt of its next answer; None for
            lm-eval's plain prompt.

    Raises:
        DataError: a field is missing, an answer has no `#### NUMBER`, or there
            are fewer training rows than shots.
    """
    if shots > len(training_rows):
        raise DataError(
            f"{TASK}: {shots} worked examples are wanted but the training split has "
            f"{len(training_rows)} rows; lower measure.gsm8k_shots or give the whole split"
        )
    generator = random.Random(SHOT_SEED)
    found = []
    for index, row in enumerate(rows):
        if choice is Shots.SAMPLED and shots:
            places = generator.sample(range(len(training_rows)), shots)
        else:
            places = list(range(shots))
        asked, answer = _read(row, index, "test")
        worked = [_read(training_rows[place], place, TRAINING_SPLIT) for place in places]
        if chat is None:
            prompt = "".join(f"{_ask(q)} {a}\n\n" for q, a in worked) + _ask(asked)
        else:
            prompt = chat(conversation(asked, worked))
        found.append(
            NumberQuestion(index, (GenerateRequest(prompt, STOP, max_new_tokens),), answer)
        )
    return found


def grade(question: NumberQuestion, answer: GenerateAnswer) -> tuple[Item, Item]:
    """Grade one answer.

    Returns:
        The item {"index", "correct", "exact_match", "flexible_extract" (0 or
        1), "tokens", "finish"} and the sample with the texts.
    """
    strict, flexible = extract_strict(answer.text), extract_flexible(answer.text)
    marks = [int(matches(found, question.answer)) for found in (strict, flexible)]
    item: Item = {
        "index": question.index,
        "correct": bool(marks[0]),
        "exact_match": marks[0],
        "flexible_extract": marks[1],
        "tokens": answer.tokens,
        "finish": answer.finish,
    }
    sample: Item = {
        **item,
        "prompt": question.requests[0].prompt,
        "text": answer.text,
        "strict": strict,
        "flexible": flexible,
        "target": question.answer,
    }
    return item, sample


def grades(
    questions: Sequence[NumberQuestion], answers: Sequence[Sequence[GenerateAnswer]]
) -> Iterator[tuple[Item, list[Item]]]:
    """Grade every question's answers.

    Yields:
        Of one answer, item and sample as `grade` gives them. Of several, the item of
        `scoring.drawn_item` with `exact_match` and `flexible_extract` (shares of right
        answers) and `majority` (0 or 1: whether the most frequent strict answer is
        right, the one drawn first among equals, as lm-eval's `majority_vote`), and the
        samples, each with its number, whether it passed, and its strict answer as it is
        compared.

    Source:
        `majority`: Wang et al. 2022, arXiv:2203.11171 (self-consistency).
    """
    for question, own in zip(questions, answers, strict=True):
        items, samples = map(list, zip(*(grade(question, one) for one in own), strict=True))
        several_answers = len(question.requests) > 1
        found = [_normalise(sample["strict"]) for sample in samples]
        if several_answers:
            pairs = zip(samples, found, strict=True)
            samples = [{**sample, "answer": answer} for sample, answer in pairs]
        item, samples = told(question, items, samples, [item["correct"] for item in items])
        if several_answers:
            winner = Counter(found).most_common(1)[0][0]
            item |= {name: sum(one[name] for one in items) / len(items) for name in METRICS}
            item["majority"] = int(winner == _normalise(question.answer))
        yield item, samples


def extract_strict(text: str) -> str:
    """The first number after `#### `, or "[invalid]"."""
    found = _STRICT.findall(text)
    return found[0].strip() if found else INVALID


def extract_flexible(text: str) -> str:
    """The last number anywhere, or "[invalid]"."""
    found = _FLEXIBLE.findall(text)
    return next(group for group in found[-1] if group).strip() if found else INVALID


def matches(extracted: str, answer: str) -> bool:
    """Whether an extracted number equals the one that ends the data's answer.

    Commas, dollar signs, everything up to `#### ` and a last full stop are
    removed from both; case is ignored. The rest must be equal as text: "18.0"
    is not "18".
    """
    return _normalise(extracted) == _normalise(answer)


def _normalise(text: str) -> str:
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def _read(row: dict[str, Any], index: int, split: str) -> tuple[str, str]:
    asked = text_field(row, "question", f"{TASK} {split}", index)
    answer = text_field(row, "answer", f"{TASK} {split}", index)
    if not _STRICT.search(answer):
        raise row_fault(
            f"{TASK} {split}", index, f"needs an answer with '#### NUMBER', came {answer[-80:]!r}"
        )
    return asked, answer


def _ask(asked: str) -> str:
    return f"Question: {asked}\nAnswer:"
