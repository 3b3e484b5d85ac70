"""What one task measured on one model: the file TASK.json. No torch.

    {"task", "version", "model", "n",
     "metrics": {name: {"value", "stderr", "higher_is_better"}},
     "items": [{"index", ...task's own fields}]}

`index` is the row number in the data file (or the document's place in its
list). What was asked and answered stands in TASK.samples.jsonl.gz beside it, and what
it took in TASK.seconds: the result itself is the same whenever it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from laura.results import store
from laura.results.errors import StoreError
from laura.results.statistics import Estimate, mean, paired_difference, ratio, ratio_difference

Item = dict[str, Any]

# Held-out loss that chooses the learning rate; measured in every study, never shown as learning.
VALIDATION = "validation_loss"

# Metrics that are a ratio of two sums over documents, and the items' fields that are summed.
# Every other metric is the mean of the items' field of the same name.
RATIO_FIELDS: dict[str, tuple[str, str]] = {
    "nats_per_token": ("nats", "tokens"),
    "nats_per_byte": ("nats", "bytes"),
}


@dataclass(frozen=True)
class Metric:
    """One score of a task.

    Attributes:
        value: The score.
        stderr: Its standard error over items.
        higher_is_better: Direction of goodness.
    """

    value: float
    stderr: float
    higher_is_better: bool


@dataclass(frozen=True)
class TaskResult:
    """What one task measured on one model.

    Attributes:
        task: Name, as in the table of tasks.
        version: Changes whenever prompts or metrics would give other numbers.
        model: What was measured.
        n: Number of items.
        metrics: Name to score.
        items: One dictionary an item, each with a unique `index`.
        seconds: Wall time of the measurement; 0 where it is not known.
    """

    task: str
    version: str
    model: str
    n: int
    metrics: dict[str, Metric]
    items: list[Item]
    seconds: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The result as the value written to TASK.json."""
        value = asdict(self)
        del value["seconds"]
        return value

    @classmethod
    def from_json(cls, value: Any, source: str = "result") -> TaskResult:
        """Check a value read from TASK.json and build the result.

        Raises:
            StoreError: a field is missing, of the wrong kind, or contradicts
                another (all such faults are listed).
        """
        faults = _faults(value)
        if faults:
            raise StoreError(
                f"{source} is not a whole task result: {'; '.join(faults)}. Delete it and "
                "measure again"
            )
        metrics = {
            name: Metric(float(m["value"]), float(m["stderr"]), m["higher_is_better"])
            for name, m in value["metrics"].items()
        }
        return cls(
            task=value["task"],
            version=value["version"],
            model=value["model"],
            n=value["n"],
            metrics=metrics,
            items=[dict(item) for item in value["items"]],
        )

    def write(self, path: Path, samples: Sequence[Item] = ()) -> None:
        """Write TASK.json whole or not at all; samples first, so that TASK.json completes them.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        if samples:
            store.write_lines_gz(samples_file(path), list(samples))
        store.write_json(seconds_file(path), round(self.seconds, 3))
        store.write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> TaskResult:
        """Read and check TASK.json.

        Raises:
            StoreError: missing, unreadable, or damaged.
        """
        return replace(cls.from_json(store.read_json(path), str(path)), seconds=_took(path))

    def values(self, metric: str) -> dict[int, float]:
        """Each item's value of a metric that is a mean over items.

        Raises:
            StoreError: an item lacks the field, or it is not a finite number.
        """
        return {item["index"]: self._number(item, metric) for item in self.items}

    def sums(self, metric: str) -> dict[int, tuple[float, float]]:
        """Each document's (numerator, denominator) of a metric that is a ratio of sums.

        Raises:
            StoreError: an item lacks a field, or it is not a finite number.
        """
        top, bottom = RATIO_FIELDS[metric]
        return {
            item["index"]: (self._number(item, top), self._number(item, bottom))
            for item in self.items
        }

    def _number(self, item: Item, field: str) -> float:
        number = item.get(field)
        if not _is_number(number, allow_boolean=True):
            raise StoreError(
                f"item {item['index']} of {self.task} on {self.model} has {field} = {number!r}, "
                "a finite number is needed; delete the result and measure again"
            )
        return float(number)  # type: ignore[arg-type]


def seconds_file(path: Path) -> Path:
    """Where the wall time of the result at `path` stands: TASK.seconds."""
    return path.with_suffix(".seconds")


def _took(path: Path) -> float:
    """Seconds of the result at `path`; 0 where they are not kept or not readable."""
    try:
        found = store.read_json(seconds_file(path))
    except StoreError:
        return 0.0
    return float(found) if _is_number(found) and found >= 0 else 0.0


def samples_file(path: Path) -> Path:
    """Where the samples of the result at `path` stand: TASK.samples.jsonl.gz."""
    return path.with_name(f"{path.stem}.samples.jsonl.gz")


def summarise(items: Sequence[Item], metric: str, higher_is_better: bool) -> Metric:
    """A metric over items: a mean, or a ratio of sums where `RATIO_FIELDS` says so.

    Raises:
        ValueError: fewer than two items, or a number that is not finite.
    """
    if metric in RATIO_FIELDS:
        top, bottom = RATIO_FIELDS[metric]
        found = ratio([item[top] for item in items], [item[bottom] for item in items])
    else:
        found = mean([item[metric] for item in items])
    return Metric(found.value, found.stderr, higher_is_better)


def change(before: TaskResult, after: TaskResult, metric: str) -> Estimate:
    """Tuned minus base in the metric's own unit, paired item by item.

    Args:
        before: The base's result.
        after: The tuned model's result of the same task and version.
        metric: A metric both have.

    Raises:
        StoreError: the two are not of the same task and version, or cover
            different items.

    Source:
        `statistics.paired_difference`, or `statistics.ratio_difference` for
        losses.
    """
    if (before.task, before.version) != (after.task, after.version):
        raise StoreError(
            f"{before.task} version {before.version} on {before.model} cannot be compared with "
            f"{after.task} version {after.version} on {after.model}; measure both again"
        )
    try:
        if metric in RATIO_FIELDS:
            return ratio_difference(before.sums(metric), after.sums(metric))
        return paired_difference(before.values(metric), after.values(metric))
    except ValueError as error:
        raise StoreError(
            f"{before.task} on {before.model} and on {after.model}: {error}"
        ) from error


def _is_number(value: Any, allow_boolean: bool = False) -> bool:
    if isinstance(value, bool):
        return allow_boolean
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits is no score
        return False


def _faults(value: Any) -> list[str]:
    """Everything wrong with a value that should be a task result."""
    if not isinstance(value, dict):
        return [f"it holds {type(value).__name__}, not an object"]
    names = ("task", "version", "model", "n", "metrics", "items")
    missing = [name for name in names if name not in value]
    if missing:
        return [f"it lacks {', '.join(missing)}"]
    faults = [f"{key} is not text" for key in names[:3] if not isinstance(value[key], str)]
    faults += _metric_faults(value["metrics"])
    items = value["items"]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return [*faults, "items is not a list of objects"]
    indices = [item.get("index") for item in items]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices):
        faults.append("an item has no index")
    elif len(set(indices)) != len(indices):
        faults.append("an index stands twice")
    n = value["n"]
    if isinstance(n, bool) or not isinstance(n, int) or n != len(items):
        faults.append(f"n is {n!r} but there are {len(items)} items")
    return faults


def _metric_faults(metrics: Any) -> list[str]:
    if not isinstance(metrics, dict) or not metrics:
        return ["metrics is not an object with at least one entry"]
    faults = []
    for name, metric in metrics.items():
        if not isinstance(metric, dict):
            faults.append(f"metric {name} is not an object")
        elif not _is_number(metric.get("value")) or not _is_number(metric.get("stderr")):
            faults.append(f"metric {name} lacks a finite value or stderr")
        elif metric["stderr"] < 0 or not isinstance(metric.get("higher_is_better"), bool):
            faults.append(f"metric {name} has a negative stderr or no direction")
    return faults
