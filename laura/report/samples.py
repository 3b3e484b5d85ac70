"""What was kept of every item: found in a folder, chosen, filtered, paired. No torch.

The folder is a study's, or one that `laura evaluate` wrote. A model's samples are
read as a stream, twice: first their verdicts, which decide what is wanted, then
the texts of what is wanted, one at a time. So a file may be larger than memory.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from laura.evals.tasks import TASKS
from laura.report.measured import Measured
from laura.report.visible import visible_line
from laura.results.errors import StoreError, UsageError
from laura.results.store import disk_message
from laura.results.task_result import Item, TaskResult, samples_file

Key = tuple[int, int]
"""Index of the item, and number of the sample of it."""
Outcome = Literal["any", "failed", "passed", "differ"]


@dataclass(frozen=True)
class Wish:
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
        alone: How many only some of the models have; they are never shown.
        verdicts: Each model's verdict of every sample all have; None where there is none.
    """

    keys: list[Key]
    matching: int
    alone: int
    verdicts: list[dict[Key, bool | None]]


def verdict(row: Item, names: Sequence[str]) -> bool | None:
    """Whether a sample passed; None where nothing says so.

    The first of the fields `passed`, `correct` and `names` that is true, false, 1 or 0.
    """
    for name in ("passed", "correct", *names):
        value = row.get(name)
        if isinstance(value, bool | int | float) and value in (0, 1):
            return bool(value)
    return None


class Samples:
    """One model's samples of one task.

    Attributes:
        model: Whose.
        task: Name of the task.
        result: The task's result, whose items stand in where no samples were kept.

    Raises:
        StoreError: the result is missing or damaged.
    """

    def __init__(self, model: Measured, task: str) -> None:
        self.model, self.task = model, task
        self.result = TaskResult.read(model.file)
        self.file = samples_file(model.file)

    @property
    def kept(self) -> bool:
        """Whether samples were kept; otherwise the rows are the result's items."""
        return self.file.is_file()

    @property
    def are_losses(self) -> bool:
        """Whether the rows are documents with a loss, which pass and fail nothing."""
        items = self.result.items
        return not self.kept and bool(items) and all("nats" in item for item in items)

    @property
    def metrics(self) -> list[str]:
        """The task's metrics, the leading one first."""
        entry = TASKS.get(self.task)
        names = list(self.result.metrics)
        return [entry.metric, *names] if entry and entry.metric in names else names

    def rows(self) -> Iterator[tuple[Key, Item]]:
        """Every sample with its key, one at a time, in the file's order.

        A sample without a number of its own gets its place among its item's samples.

        Raises:
            StoreError: the file is damaged; the line is named.
        """
        seen: Counter[int] = Counter()
        for place, row in self._lines() if self.kept else enumerate(self.result.items, 1):
            index = row.get("index")
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise self._damage(f"line {place} has no index")
            number = row.get("sample")
            if isinstance(number, bool) or not isinstance(number, int):
                number = seen[index]
            seen[index] += 1
            yield (index, number), row

    @cached_property
    def verdicts(self) -> dict[Key, bool | None]:
        """The verdict of every sample, in the file's order; the items' where samples have none.

        Raises:
            StoreError: the file is damaged, or a sample stands in it twice.
        """
        found: dict[Key, bool | None] = {}
        for key, row in self.rows():
            if key in found:
                raise self._damage(f"item {key[0]} has sample {key[1]} twice")
            found[key] = verdict(row, self.metrics)
        if self.kept and all(value is None for value in found.values()):
            items = {item["index"]: verdict(item, self.metrics) for item in self.result.items}
            found = {key: items.get(key[0]) for key in found}
        return found

    def picked(self, keys: Sequence[Key]) -> Iterator[Item]:
        """The samples with these keys, in the order of the keys.

        Samples that the file has earlier than they are wanted wait in memory; with
        files in the same order, as Laura writes them, none does.
        """
        wanted, rows = set(keys), self.rows()
        waiting: dict[Key, Item] = {}
        for key in keys:
            while key not in waiting:
                found = next(rows, None)
                if found is None:
                    raise self._damage(f"item {key[0]} has gone while it was read")
                if found[0] in wanted:
                    waiting[found[0]] = found[1]
            yield waiting.pop(key)

    def _lines(self) -> Iterator[tuple[int, Item]]:
        place = 0
        try:
            with gzip.open(self.file, "rb") as file:
                for place, line in enumerate(file, 1):
                    row = json.loads(line, parse_constant=_refuse)
                    if not isinstance(row, dict):
                        raise ValueError(f"it holds {type(row).__name__}, not an object")
                    yield place, row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self._damage(f"after line {place} it cannot be unpacked: {error}") from error
        except OSError as error:
            raise StoreError(visible_line(disk_message(error, self.file))) from error
        except (ValueError, RecursionError) as error:
            raise self._damage(f"line {place} is not JSON: {error}") from error

    def _damage(self, problem: str) -> StoreError:
        return StoreError(
            f"{visible_line(str(self.file))} is damaged: {visible_line(problem)}. Delete it and "
            f"{self.model.file.name} beside it, and give the command that made them again"
        )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number in JSON")


def select(models: Sequence[Samples], wish: Wish) -> Selection:
    """Decide which samples are wanted, by their verdicts.

    Raises:
        UsageError: the wish cannot be fulfilled by these models: a verdict is asked
            of losses, or an item or sample is not there.
        StoreError: a file is damaged.
    """
    if wish.outcome == "differ" and len(models) < 2:
        raise UsageError("--differ compares models; name two, as in --model base --model NAME")
    every = [model.verdicts for model in models]
    first = models[0]
    common = [key for key in every[0] if all(key in one for one in every[1:])]
    verdicts = [{key: one[key] for key in common} for one in every]
    where = f"{first.task} on {' and '.join(visible_line(m.model.name) for m in models)}"
    if not common:
        raise UsageError(f"there is no item that all have measured: {where}")
    keys = _at_place(common, wish, where)
    if wish.outcome != "any":
        if all(value is None for one in verdicts for value in one.values()):
            raise UsageError(
                f"{where} has no verdict that --{wish.outcome} could ask for; leave it away"
            )
        keys = [key for key in keys if _fits([one[key] for one in verdicts], wish.outcome)]
    alone = len(set().union(*every)) - len(common)
    return Selection(keys[: wish.limit], len(keys), alone, verdicts)


def _at_place(keys: list[Key], wish: Wish, where: str) -> list[Key]:
    """The keys with the wanted index and sample."""
    if wish.index is not None:
        indices = [index for index, _ in keys]
        keys = [key for key in keys if key[0] == wish.index]
        if not keys:
            raise UsageError(
                f"{where} has no item {wish.index}; there are {len(set(indices))}, numbered "
                f"{min(indices)} to {max(indices)}"
            )
    if wish.sample is not None:
        numbers = {number for _, number in keys}
        keys = [key for key in keys if key[1] == wish.sample]
        if not keys:
            item = where if wish.index is None else f"item {wish.index} of {where}"
            raise UsageError(
                f"{item} has no sample {wish.sample}; there are {len(numbers)}, numbered "
                f"{min(numbers)} to {max(numbers)}"
            )
    return keys


def _fits(verdicts: Sequence[bool | None], outcome: Outcome) -> bool:
    if outcome == "differ":
        return None not in verdicts and len(set(verdicts)) > 1
    return False in verdicts if outcome == "failed" else all(verdicts)


def stream(
    models: Sequence[Samples], selection: Selection
) -> Iterator[tuple[Key, list[tuple[Item, bool | None]]]]:
    """Every wanted sample: its key, and each model's row with its verdict."""
    streams = [model.picked(selection.keys) for model in models]
    for key, *rows in zip(selection.keys, *streams, strict=True):
        marks = [one[key] for one in selection.verdicts]
        yield key, list(zip(rows, marks, strict=True))
