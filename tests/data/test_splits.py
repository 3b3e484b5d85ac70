from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from laura.data.examples import Example
from laura.data.sources import load_examples
from laura.data.splits import load_held_out, make_splits
from laura.recipe.sections import DataSection
from laura.results.errors import DataError


def qa(question: str, answer: str) -> dict[str, str]:
    return {"prompt": question, "completion": answer}


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@dataclass(frozen=True)
class Parts:
    """The splits with their examples in place of numbers."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    source_text: list[Example]
    fingerprint: str


def split(data_dir: Path | None = None, **section: Any) -> Parts:
    data = DataSection(**section)
    rows = load_examples(data.train, data_dir)
    others = load_held_out(data, data_dir)
    found = make_splits(data, rows, others)
    validation = [rows[place] for place in found.held_out] or others.validation
    train = [rows[place] for place in found.train]
    return Parts(train, validation, others.test, others.source_text, found.fingerprint)


def contents(examples: list[Example]) -> set[tuple[tuple[str, str], ...]]:
    return {example.messages for example in examples}


ROWS = [qa(f"What is {i} + 1?", str(i + 1)) for i in range(100)]


def test_held_out_rows_do_not_depend_on_order(tmp_path: Path) -> None:
    straight = split(train=write(tmp_path / "a.jsonl", ROWS), validation_rows=20)
    mixed_rows = random.Random(0).sample(ROWS, len(ROWS))
    mixed = split(train=write(tmp_path / "b.jsonl", mixed_rows), validation_rows=20)
    fewer = split(train=str(tmp_path / "a.jsonl"), validation_rows=5)
    first = [example.messages for example in straight.validation]
    assert first == [example.messages for example in mixed.validation]
    assert first[:5] == [example.messages for example in fewer.validation]
    assert len(straight.train) == 80 and len(straight.validation) == 20
    assert not contents(straight.train) & contents(straight.validation)
    assert [e.index for e in straight.train] == sorted(e.index for e in straight.train)


def test_copies_of_held_out_rows_leave_train_and_other_copies_stay(tmp_path: Path) -> None:
    copies = [qa(row["prompt"].upper() + "  ", row["completion"]) for row in ROWS]
    others = [qa(row["prompt"], "I do not know.") for row in ROWS]
    found = split(train=write(tmp_path / "a.jsonl", ROWS + copies + others), validation_rows=20)
    assert len(found.validation) == 20
    assert len(found.train) == 80 * 3
    asked = {e.prompt_digest for e in found.validation}
    assert not asked & {e.prompt_digest for e in found.train}


def test_an_instruction_shared_by_many_rows_is_not_a_question(tmp_path: Path) -> None:
    rows = [qa("Tell me a story.", f"Story {i}.") for i in range(50)]
    found = split(train=write(tmp_path / "a.jsonl", rows), validation_rows=10)
    assert (len(found.train), len(found.validation)) == (40, 10)


@pytest.mark.parametrize("part", ["validation", "test", "source_text"])
def test_overlap_is_refused(tmp_path: Path, part: str) -> None:
    train = write(tmp_path / "a.jsonl", ROWS)
    for same in (qa("what is 7 + 1? ", "8"), qa("What is 7 + 1?", "It is 8.")):
        other = write(tmp_path / "b.jsonl", [qa("new", "new"), same])
        message = rf"data\.train and data\.{part} overlap in 1 rows .*: rows 7 of train"
        with pytest.raises(DataError, match=message):
            split(train=train, validation_rows=5, **{part: other})


def test_validation_and_test_may_not_overlap(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", ROWS)
    other = write(tmp_path / "b.jsonl", [qa("new", "new")])
    with pytest.raises(DataError, match=r"data\.validation and data\.test overlap in 1 rows"):
        split(train=train, validation=other, test=other)


def test_too_few_rows_to_hold_out(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", ROWS[:10] * 5)
    with pytest.raises(DataError, match=r"50 rows, .* too few to hold out validation_rows = 10"):
        split(train=train, validation_rows=10)
    assert len(split(train=train, validation_rows=9).train) == 5


def test_fingerprint_tells_content_order_and_part(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", ROWS)
    changed = [*ROWS[:-1], qa("What is 99 + 1?", "100.")]
    b = write(tmp_path / "b.jsonl", changed)
    c = write(tmp_path / "c.jsonl", ROWS[::-1])
    other = write(tmp_path / "d.jsonl", [{"text": "x"}])
    marks = [
        split(train=a, validation_rows=5).fingerprint,
        split(train=a, validation_rows=6).fingerprint,
        split(train=b, validation_rows=5).fingerprint,
        split(train=c, validation_rows=5).fingerprint,
        split(train=a, validation_rows=5, test=other).fingerprint,
        split(train=a, validation_rows=5, source_text=other).fingerprint,
    ]
    assert len(set(marks)) == len(marks)
    assert split(train=a, validation_rows=5).fingerprint == marks[0]


def test_the_shipped_demo_data_fits_together() -> None:
    name = "builtin:word-problems"
    found = split(
        train=name,
        validation={"source": name, "split": "validation"},
        test={"source": name, "split": "test"},
        source_text="builtin:plain-text",
    )
    assert (len(found.train), len(found.validation), len(found.test)) == (400, 60, 100)
    assert len(found.source_text) == 60


def test_gsm8k_train_and_test_are_apart(shared_data: Path) -> None:
    found = split(
        shared_data,
        train="gsm8k",
        test={"source": "gsm8k", "split": "test"},
        source_text="wikitext",
    )
    assert len(found.train) + len(found.validation) == 7473
