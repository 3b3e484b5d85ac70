"""Train, validation and test examples that never overlap."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from laura.data.sources import Example, load_examples
from laura.errors import DataError
from laura.recipe import DataSection, Source

SALT = "laura hold-out"
INSTRUCTION_SHARE = 100
INSTRUCTION_FLOOR = 3


@dataclass(frozen=True)
class Splits:
    """The examples of a study.

    Attributes:
        train: What is learnt from, in source order.
        validation: What chooses the learning rate. Held-out rows come in a
            random but fixed order, so that the first few are a fair sample.
        test: Target-domain examples; may be empty.
        source_text: Source-domain texts; may be empty.
        fingerprint: SHA-256 over the content of all four, in order.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    source_text: list[Example]
    fingerprint: str


def make_splits(section: DataSection, data_dir: Path | None = None) -> Splits:
    """Load every source of a recipe's data section and keep them apart.

    Two examples count as the same when their contents agree up to case and
    white space, or when they ask the same question (all user messages before
    the first answer). A prompt that many training rows share, more than 3 and
    more than one in a hundred, is an instruction, not a question, and is not
    compared. Repeated rows inside train stay.

    Without `validation`, rows are held out of train: the choice depends on
    their content alone, not on order, and whatever equals a held-out row
    leaves train as well.

    Args:
        section: The recipe's `data`.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        DataError: a source cannot be read, train overlaps with another part,
            validation overlaps with test, or too few rows are there to hold out.
        HubError: the Hub is needed and cannot be reached.
    """

    def load(source: Source | None) -> list[Example]:
        return load_examples(source, data_dir) if source else []

    train, test, text = load(section.train), load(section.test), load(section.source_text)
    questions = _Questions(train)
    _refuse_overlap("train", train, "test", test, questions)
    _refuse_overlap("train", train, "source_text", text, questions)
    if section.validation is None:
        train, validation = _hold_out(train, section.validation_rows, questions)
    else:
        validation = load(section.validation)
        _refuse_overlap("train", train, "validation", validation, questions)
        _refuse_overlap("validation", validation, "test", test, questions)
    parts = {"train": train, "validation": validation, "test": test, "source_text": text}
    return Splits(train, validation, test, text, _fingerprint(parts))


class _Questions:
    """Tells by which keys an example is compared."""

    def __init__(self, train: Sequence[Example]) -> None:
        counts = Counter(example.prompt_digest for example in train)
        most = max(INSTRUCTION_FLOOR, len(train) // INSTRUCTION_SHARE)
        self.shared = {prompt for prompt, count in counts.items() if count > most} | {""}

    def keys(self, example: Example) -> set[str]:
        """Digests of the content and, if it is a question, of the prompt."""
        return {example.normal_digest, example.prompt_digest} - self.shared

    def all_keys(self, examples: Iterable[Example]) -> set[str]:
        return {key for example in examples for key in self.keys(example)}


def _refuse_overlap(
    name: str,
    examples: Sequence[Example],
    other_name: str,
    others: Sequence[Example],
    questions: _Questions,
) -> None:
    there = questions.all_keys(others)
    same = [example.index for example in examples if questions.keys(example) & there]
    if same:
        first = ", ".join(str(index) for index in same[:5]) + (", ..." if len(same) > 5 else "")
        raise DataError(
            f"data.{name} and data.{other_name} overlap in {len(same)} rows (same content or same "
            f"question): rows {first} of {name} also stand in {other_name}. What is measured must "
            f"not be learnt: choose another split for {other_name}, or delete these rows from one"
        )


def _hold_out(
    train: list[Example], count: int, questions: _Questions
) -> tuple[list[Example], list[Example]]:
    validation: list[Example] = []
    taken: set[str] = set()
    for example in sorted(train, key=_lot):
        if len(validation) == count:
            break
        keys = questions.keys(example)
        if not keys & taken:
            validation.append(example)
            taken |= keys
    kept = [example for example in train if not questions.keys(example) & taken]
    if len(validation) < count or not kept:
        raise DataError(
            f"data.train has {len(train)} rows, {len(questions.all_keys(train))} different ones, "
            f"too few to hold out validation_rows = {count} and still learn; lower "
            "data.validation_rows, or name a source as data.validation"
        )
    return kept, validation


def _lot(example: Example) -> tuple[str, str, int]:
    """Place in the draw: by content, so that the order of rows does not matter."""
    drawn = hashlib.sha256(f"{SALT} {example.normal_digest}".encode()).hexdigest()
    return drawn, example.digest, example.index


def _fingerprint(parts: dict[str, list[Example]]) -> str:
    total = hashlib.sha256()
    for name, examples in parts.items():
        total.update(f"{name} {len(examples)}\n".encode())
        for example in examples:
            total.update(bytes.fromhex(example.digest))
    return total.hexdigest()
