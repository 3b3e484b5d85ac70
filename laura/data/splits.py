"""Train, validation and test examples that never overlap.

Training examples may be billions of tokens, so they are only known by their
digests here; the other parts are small and are loaded.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from laura.data.examples import Example, ExampleIdentity
from laura.data.sources import load_examples
from laura.recipe.sections import DataSection, Source
from laura.results.errors import DataError

SALT = "laura hold-out"
INSTRUCTION_SHARE = 100
INSTRUCTION_FLOOR = 3


@dataclass(frozen=True)
class HeldOut:
    """The sources of a recipe that are not learnt from.

    Attributes:
        validation: Data that chooses the learning rate; empty where the recipe
            names none.
        test: Target-domain examples; may be empty.
        source_text: Source-domain texts; may be empty.
    """

    validation: list[Example]
    test: list[Example]
    source_text: list[Example]


def load_held_out(section: DataSection, data_dir: Path | None = None) -> HeldOut:
    """Load what a recipe measures on.

    Args:
        section: The recipe's `data`.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        DataError: a source cannot be read or has no rows.
        HubError: the Hub is needed and cannot be reached.
    """

    def load(source: Source | None) -> list[Example]:
        return load_examples(source, data_dir) if source else []

    return HeldOut(load(section.validation), load(section.test), load(section.source_text))


@dataclass(frozen=True)
class Splits:
    """The examples of a study.

    Attributes:
        train: Places of the training examples that are learnt from, rising.
        held_out: Places of those held out as validation, in a random but fixed
            order, so that the first few are a fair sample; empty where the
            recipe names validation data.
        fingerprint: SHA-256 over the content of all parts, in order.
    """

    train: Sequence[int]
    held_out: list[int]
    fingerprint: str


def make_splits(section: DataSection, train: Sequence[ExampleIdentity], others: HeldOut) -> Splits:
    """Keep what is learnt from apart from what is measured on.

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
        train: The examples of `data.train`, in order.
        others: The recipe's other sources.

    Raises:
        DataError: train overlaps with another part, validation overlaps with
            test, or too few rows are there to hold out.
    """
    validation, test, text = others.validation, others.test, others.source_text
    questions = _Questions(train)
    _refuse_overlap("train", train, "test", test, questions)
    _refuse_overlap("train", train, "source_text", text, questions)
    kept: Sequence[int] = range(len(train))
    held_out: list[int] = []
    if section.validation is None:
        kept, held_out = _hold_out(train, section.validation_rows, questions)
    else:
        _refuse_overlap("train", train, "validation", validation, questions)
        _refuse_overlap("validation", validation, "test", test, questions)
    parts: dict[str, tuple[int, Iterable[ExampleIdentity]]] = {
        "train": (len(kept), (train[place] for place in kept)),
        "held out": (len(held_out), (train[place] for place in held_out)),
        "validation": (len(validation), validation),
        "test": (len(test), test),
        "source_text": (len(text), text),
    }
    return Splits(kept, held_out, _fingerprint(parts))


def measured_rows(
    examples: Sequence[ExampleIdentity], measured: Mapping[str, Sequence[ExampleIdentity]]
) -> dict[int, str]:
    """Place of each example that is measured on, and the name of the part where it stands.

    What counts as the same is what `make_splits` says.

    Args:
        examples: What is to be replayed.
        measured: What is measured on, by name.
    """
    questions = _Questions(examples)
    there = {key: name for name, part in measured.items() for key in questions.all_keys(part)}
    found = {}
    for place, example in enumerate(examples):
        for key in questions.keys(example) & there.keys():
            found[place] = there[key]
    return found


def refuse_measured(
    name: str,
    examples: Sequence[ExampleIdentity],
    measured: Mapping[str, Sequence[ExampleIdentity]],
) -> None:
    """Refuse to learn what is measured on; see `measured_rows`.

    Args:
        name: Key of the recipe the examples come from.
        examples: What is to be replayed.
        measured: What is measured on, by name.

    Raises:
        DataError: some examples are the same.
    """
    found = measured_rows(examples, measured)
    if found:
        first = _first(f"{examples[place].index} ({part})" for place, part in found.items())
        raise DataError(
            f"{name} holds {len(found)} rows that are measured on (same content or same "
            f"question): {first}. What is measured must not be learnt: choose another split "
            "or source, or delete these rows from one"
        )


def fingerprint_of(examples: Sequence[ExampleIdentity]) -> str:
    """SHA-256 over the content of examples, in order."""
    return _fingerprint({"replay": (len(examples), examples)})


def hold_out(
    examples: Sequence[ExampleIdentity], number: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Places that stay, and `number` places that are held out; see `make_splits`.

    Raises:
        DataError: too few different examples.
    """
    return _hold_out(examples, number, _Questions(examples))


class _Questions:
    """Tells by which keys an example is compared."""

    def __init__(self, train: Sequence[ExampleIdentity]) -> None:
        # Eight bytes tell the prompts of any training set apart, and take little memory.
        prompts = array("Q", (_start(known.prompt_digest) for known in train))
        most = max(INSTRUCTION_FLOOR, len(train) // INSTRUCTION_SHARE)
        starts, counts = np.unique(np.frombuffer(prompts, np.uint64), return_counts=True)
        self._shared = {int(start) for start in starts[counts > most]}

    def keys(self, example: ExampleIdentity) -> set[str]:
        """Digests of the content and, if it is a question, of the prompt."""
        prompt = example.prompt_digest
        if not prompt or _start(prompt) in self._shared:
            return {example.normal_digest}
        return {example.normal_digest, prompt}

    def all_keys(self, examples: Iterable[ExampleIdentity]) -> set[str]:
        return {key for example in examples for key in self.keys(example)}


def _start(digest: str) -> int:
    """The first eight bytes of a digest as a number; 0 of none."""
    return int(digest[:16] or "0", 16)


def _refuse_overlap(
    name: str,
    examples: Sequence[ExampleIdentity],
    other_name: str,
    others: Sequence[ExampleIdentity],
    questions: _Questions,
) -> None:
    there = questions.all_keys(others)
    same = [example.index for example in examples if questions.keys(example) & there]
    if same:
        first = _first(map(str, same))
        raise DataError(
            f"data.{name} and data.{other_name} overlap in {len(same)} rows (same content or same "
            f"question): rows {first} of {name} also stand in {other_name}. What is measured must "
            f"not be learnt: choose another split for {other_name}, or delete these rows from one"
        )


def _first(names: Iterable[str]) -> str:
    """The first five."""
    shown = list(islice(names, 6))
    return ", ".join([*shown[:5], *(["..."] if shown[5:] else [])])


def _hold_out(
    train: Sequence[ExampleIdentity], count: int, questions: _Questions
) -> tuple[array[int], list[int]]:
    """Places that stay, and places that are held out."""
    held_out: list[int] = []
    taken: set[str] = set()
    for place in _drawn(train):
        if len(held_out) == count:
            break
        keys = questions.keys(train[place])
        if not keys & taken:
            held_out.append(place)
            taken |= keys
    kept = array("q", (p for p, known in enumerate(train) if not questions.keys(known) & taken))
    if len(held_out) < count or not kept:
        raise DataError(
            f"data.train has {len(train)} rows, {len(questions.all_keys(train))} different ones, "
            f"too few to hold out validation_rows = {count} and still learn; lower "
            "data.validation_rows, or name a source as data.validation"
        )
    return kept, held_out


def _drawn(train: Sequence[ExampleIdentity]) -> Iterator[int]:
    """Places in the order of a draw by content, so that the order of rows does not matter."""
    lots = array("Q", (_lot(known) for known in train))
    order = np.argsort(np.frombuffer(lots, np.uint64), kind="stable")
    # Copies draw the same lot; among them the content as it is decides.
    for _, same in groupby(map(int, order), key=lots.__getitem__):
        yield from sorted(same, key=lambda place: (train[place].digest, place))


def _lot(known: ExampleIdentity) -> int:
    drawn = hashlib.sha256(f"{SALT} {known.normal_digest}".encode())
    return int.from_bytes(drawn.digest()[:8], "big")


def _fingerprint(parts: dict[str, tuple[int, Iterable[ExampleIdentity]]]) -> str:
    total = hashlib.sha256()
    for name, (count, examples) in parts.items():
        total.update(f"{name} {count}\n".encode())
        for example in examples:
            total.update(bytes.fromhex(example.digest))
    return total.hexdigest()
