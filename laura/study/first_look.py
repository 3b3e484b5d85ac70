"""A look at data before anything is trained on them, by which `laura init` writes a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from laura.data.examples import Example
from laura.data.named import BENCHMARK_ROWS
from laura.data.rows import read_rows
from laura.data.sources import load_rows, source_file
from laura.data.splits import hold_out
from laura.evals.tasks import TASKS
from laura.recipe.sections import Source
from laura.results.errors import DataError, HubError
from laura.results.progress import SILENT, Progress
from laura.results.statistics import count
from laura.results.store import write_text
from laura.study.plan.work import TokenCounter

# Rows that share so many words in a row with a benchmark's leak it: Brown et al. 2020,
# arXiv:2005.14165, appendix C.
SHARED_WORDS = 13
TEST_SHARE = 10
MOST_TEST_ROWS = 500
FEWEST_ROWS = 20


@dataclass(frozen=True)
class FirstLook:
    """What was seen; rows are told by their numbers from 0.

    Attributes:
        rows: How many there are.
        median_tokens: Of a row's length in tokens,
        percentile_95_tokens: and so on,
        longest_tokens: and so on.
        counted: How the tokens were counted, in words.
        unasked: Rows that answer nothing.
        repeated: Rows that are an earlier row again, up to case and white space.
        asked_again: Rows that ask an earlier row's question and answer otherwise.
        leaks: Benchmark to the rows that share `SHARED_WORDS` words in a row with it.
        unread: Benchmarks whose rows could not be read here.
    """

    rows: int
    median_tokens: int
    percentile_95_tokens: int
    longest_tokens: int
    counted: str
    unasked: list[int]
    repeated: list[int]
    asked_again: list[int]
    leaks: dict[str, list[int]]
    unread: list[str]

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"{count(self.rows, 'row')}"
        yield (
            f"  tokens a row: median {self.median_tokens:,}, 95 % up to "
            f"{self.percentile_95_tokens:,}, longest {self.longest_tokens:,} ({self.counted})"
        )
        yield f"  nothing asked: {_rows(self.unasked)}"
        yield f"  repeated: {_rows(self.repeated)}"
        yield f"  the same question with another answer: {_rows(self.asked_again)}"
        for task, rows in self.leaks.items():
            yield f"  {SHARED_WORDS} words in a row shared with {task}: {_rows(rows)}"
        if self.unread:
            yield f"  not compared with {', '.join(self.unread)}: they are not on this machine"

    def value(self) -> dict[str, Any]:
        """The same for machines."""
        return asdict(self)


def first_look(
    examples: Sequence[Example], tasks: Sequence[str], tokenizer: Path | None, data_dir: Path | None
) -> FirstLook:
    """Look at examples.

    Args:
        examples: At least one.
        tasks: Those that are to be measured.
        tokenizer: tokenizer.json of the base, or None.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
    """
    counter = TokenCounter(tokenizer)
    sizes = sorted(counter(example)[0] for example in examples)
    repeated, asked_again = [], []
    contents, questions = set[str](), set[str]()
    for example in examples:
        if example.normal_digest in contents:
            repeated.append(example.index)
        elif example.prompt_digest in questions:
            asked_again.append(example.index)
        contents.add(example.normal_digest)
        questions |= {example.prompt_digest} - {""}
    benchmarks, unread = _benchmarks(tasks, data_dir)
    return FirstLook(
        rows=len(examples),
        median_tokens=round(median(sizes)),
        percentile_95_tokens=sizes[(95 * len(sizes) - 1) // 100],
        longest_tokens=sizes[-1],
        counted=counter.words,
        unasked=[one.index for one in examples if one.messages and not one.prompt_digest],
        repeated=repeated,
        asked_again=asked_again,
        leaks=_leaks(examples, benchmarks),
        unread=unread,
    )


def split_off_test(
    source: Source,
    examples: Sequence[Example],
    folder: Path,
    data_dir: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Path, Path]:
    """Write a file's rows anew as FOLDER/train.jsonl and FOLDER/test.jsonl, which never overlap.

    One row in ten is for the test, at most `MOST_TEST_ROWS`, drawn by its content; what repeats
    one of them or asks the same question is in neither.

    Args:
        source: A file of the user's own.
        examples: What it holds.
        folder: Made where it is not there.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        progress: Told what was written.

    Raises:
        DataError: it is no file, or has too few rows.
        StoreError: the folder cannot be written.
    """
    path = source_file(source, data_dir)
    if path is None:
        raise DataError(f"{source.source} is no file, so nothing is split off it; give --test")
    if len(examples) < FEWEST_ROWS:
        raise DataError(
            f"{path} has {count(len(examples), 'row')}, too few to split a test off (at least "
            f"{FEWEST_ROWS}); give --test"
        )
    kept, held = hold_out(examples, min(len(examples) // TEST_SHARE, MOST_TEST_ROWS))
    wanted = {"train": {examples[p].index for p in kept}, "test": {examples[p].index for p in held}}
    texts = {name: list[str]() for name in wanted}
    for index, (_, row) in enumerate(read_rows(path)):
        for name, rows in wanted.items():
            if index in rows:
                texts[name].append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    for name, lines in texts.items():
        write_text(folder / f"{name}.jsonl", "".join(lines))
        progress.say(f"{count(len(lines), 'row')} in {folder / name}.jsonl")
    return folder / "train.jsonl", folder / "test.jsonl"


def _rows(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none"
    some = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{count(len(numbers), 'row')} ({some})"


def _benchmarks(
    tasks: Sequence[str], data_dir: Path | None
) -> tuple[dict[str, set[str]], list[str]]:
    """Runs of words in each benchmark, and the benchmarks that cannot be read."""
    found, unread = dict[str, set[str]](), list[str]()
    for task in tasks:
        if task not in BENCHMARK_ROWS:
            continue
        try:
            rows = load_rows(task, TASKS[task].split, data_dir)
        except (DataError, HubError):
            unread.append(task)
            continue
        found[task] = {run for row in rows for text in _texts(row) for run in _runs(text)}
    return found, unread


def _leaks(examples: Sequence[Example], benchmarks: Mapping[str, set[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {task: [] for task in benchmarks}
    for example in examples:
        texts = [content for _, content in example.messages] or [example.text]
        own = {run for text in texts for run in _runs(text)}
        for task, runs in benchmarks.items():
            if not own.isdisjoint(runs):
                found[task].append(example.index)
    return found


def _runs(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    for start in range(len(words) - SHARED_WORDS + 1):
        yield " ".join(words[start : start + SHARED_WORDS])


def _texts(value: Any) -> Iterator[str]:
    """Every text in a benchmark's row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
