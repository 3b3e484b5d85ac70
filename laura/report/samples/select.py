"""One task's samples of several models: read, with their verdicts, filtered and paired."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from laura.evals.tasks import TASKS
from laura.report.samples.find import MeasuredModel
from laura.report.visible import visible_line
from laura.results.errors import StoreError, UsageError
from laura.results.store import disk_message
from laura.results.task_result import Item, TaskResult, samples_file

Key = tuple[int, int]
"""Index of the item, and number of the sample of it."""
Outcome = Literal["any", "failed", "passed", "differ"]


@dataclass(frozen=True)
class SampleFilter:
    """Which samples are wanted.

    Attributes:
        outcome: Of one model: those it failed or passed. Of several: those that any
            failed, that all passed, or where their verdicts differ.
        index: This item only.
        sample: This sample of an item only.
        limit: No more than so many.
    """

    outcome: Outcome = "any"
    index: int | None = None
    sample: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Selection:
    """Which samples were found.

    Attributes:
        keys: Those to show, in the order of the first model's file.
        matching: How many there are without the limit.
        common: Those that all of the models have.
        alone: How many only some of the models have; they are never shown.
    """

    keys: list[Key]
    matching: int
    common: list[Key]
    alone: int


def verdict(row: Item, names: Sequence[str]) -> bool | None:
    """Whether a sample passed; None where nothing says so.

    The first of the fields `passed`, `correct` and `names` that is true, false, 1 or 0.
    """
    for name in ("passed", "correct", *names):
        value = row.get(name)
        if isinstance(value, bool | int | float) and value in (0, 1):
            return bool(value)
    return None


class KeptSamples:
    """One model's samples of one task.

    Attributes:
        model: Whose.
        task: Name of the task.
        result: The task's result, whose items stand in where no samples were kept.
        kept: Whether samples were kept; otherwise the rows are the result's items.
        metrics: The task's metrics, the leading one first.
        rows: Every sample by its key, in the file's order. A sample without a number of
            its own gets its place among its item's samples.
        verdicts: The verdict of each; the items' where samples have none.

    Raises:
        StoreError: the result is missing or damaged, or the samples are; the line is named.
    """

    def __init__(self, model: MeasuredModel, task: str) -> None:
        self.model, self.task, self.kept = model, task, model.kept
        self.result = TaskResult.read(model.file)
        entry, names = TASKS.get(task), list(self.result.metrics)
        self.metrics = [entry.metric, *names] if entry and entry.metric in names else names
        self.rows = self._read()
        self.verdicts = {key: verdict(row, self.metrics) for key, row in self.rows.items()}
        if self.kept and all(value is None for value in self.verdicts.values()):
            items = {item["index"]: verdict(item, self.metrics) for item in self.result.items}
            self.verdicts = {key: items.get(key[0]) for key in self.rows}

    @property
    def are_losses(self) -> bool:
        """Whether the rows are documents with a loss, which pass and fail nothing."""
        items = self.result.items
        return not self.kept and bool(items) and all("nats" in item for item in items)

    def _read(self) -> dict[Key, Item]:
        seen: Counter[int] = Counter()
        found: dict[Key, Item] = {}
        file = samples_file(self.model.file)
        for place, row in self._lines(file) if self.kept else enumerate(self.result.items, 1):
            index, number = row.get("index"), row.get("sample")
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise self._damage(file, f"line {place} has no index")
            if isinstance(number, bool) or not isinstance(number, int):
                number = seen[index]
            seen[index] += 1
            if (index, number) in found:
                raise self._damage(file, f"item {index} has sample {number} twice")
            found[index, number] = row
        return found

    def _lines(self, path: Path) -> Iterator[tuple[int, Item]]:
        place = 0
        try:
            with gzip.open(path, "rb") as file:
                for place, line in enumerate(file, 1):
                    row = json.loads(line, parse_constant=_refuse)
                    if not isinstance(row, dict):
                        raise ValueError(f"it holds {type(row).__name__}, not an object")
                    yield place, row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self._damage(
                path, f"after line {place} it cannot be unpacked: {error}"
            ) from error
        except OSError as error:
            raise StoreError(visible_line(disk_message(error, path))) from error
        except (ValueError, RecursionError) as error:
            raise self._damage(path, f"line {place} is not JSON: {error}") from error

    def _damage(self, file: Path, problem: str) -> StoreError:
        return StoreError(
            f"{visible_line(str(file))} is damaged: {visible_line(problem)}. Delete it and "
            f"{self.model.file.name} beside it, and give the command that made them again"
        )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number in JSON")


def select(models: Sequence[KeptSamples], wanted: SampleFilter) -> Selection:
    """Decide which samples are wanted, by their verdicts.

    Raises:
        UsageError: the filter does not fit these models: a verdict is asked of losses,
            or an item or sample is not there.
    """
    if wanted.outcome == "differ" and len(models) < 2:
        raise UsageError("--differ compares models; name two, as in --model base --model NAME")
    first = models[0]
    common = [key for key in first.rows if all(key in one.rows for one in models[1:])]
    where = f"{first.task} on {' and '.join(visible_line(m.model.name) for m in models)}"
    if not common:
        raise UsageError(f"there is no item that all have measured: {where}")
    keys = _at_place(common, 0, wanted.index, where, "item")
    item = where if wanted.index is None else f"item {wanted.index} of {where}"
    keys = _at_place(keys, 1, wanted.sample, item, "sample")
    if wanted.outcome != "any":
        if all(one.verdicts[key] is None for one in models for key in common):
            raise UsageError(
                f"{where} has no verdict that --{wanted.outcome} could ask for; leave it away"
            )
        keys = [k for k in keys if _fits([one.verdicts[k] for one in models], wanted.outcome)]
    alone = len(set().union(*(one.rows for one in models))) - len(common)
    return Selection(keys[: wanted.limit], len(keys), common, alone)


def _at_place(keys: list[Key], part: int, number: int | None, where: str, what: str) -> list[Key]:
    """The keys with the wanted index, or number of the sample."""
    found = [key for key in keys if number in (None, key[part])]
    if not found:
        there = {key[part] for key in keys}
        raise UsageError(
            f"{where} has no {what} {number}; there are {len(there)}, numbered {min(there)} to "
            f"{max(there)}"
        )
    return found


def _fits(verdicts: Sequence[bool | None], outcome: Outcome) -> bool:
    if outcome == "differ":
        return None not in verdicts and len(set(verdicts)) > 1
    return False in verdicts if outcome == "failed" else all(verdicts)
