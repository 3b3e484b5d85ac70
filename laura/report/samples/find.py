"""Which models were measured on which tasks, and their samples: found, named, read, filtered.

The folder is a study's, or one that `laura evaluate` wrote.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from laura.evals.tasks import TASKS
from laura.report.visible import visible_line
from laura.results.errors import StoreError, UsageError
from laura.results.inputs import MOST_SAMPLES_BYTES, bounded_lines, open_regular
from laura.results.store import disk_faults, disk_message, read_json
from laura.results.task_result import Item, TaskResult, samples_file
from laura.results.units import rate_text

T = TypeVar("T")

BASE = "base"
MOST_LISTED = 40


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was measured on a task.

    Attributes:
        name: What `--model` takes; no two models of a task share it.
        title: The name, with arm, learning rate and seed where it is a run's.
        file: Its TASK.json.
        aliases: What `--model` takes too, where only one model answers to it: the ID and
            the arm of a run, for its last step.
    """

    name: str
    title: str
    file: Path
    aliases: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether its samples were kept, besides the items."""
        return samples_file(self.file).is_file()


def find_results(folder: Path) -> dict[str, list[Path]]:
    """Every TASK.json below a folder, by task.

    A file counts by its name (that of a task), by its place in a study, or by the
    samples beside it; none is opened.

    Raises:
        StoreError: no such folder, not to be read, or no result in it.
    """
    shown = visible_line(str(folder))
    if not folder.is_dir():
        raise StoreError(
            f"{shown} is not a folder; give the folder of a study, as in studies/NAME, or the one "
            "that `laura evaluate` wrote"
        )
    found: dict[str, list[Path]] = {}
    with disk_faults(folder):
        for where, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            place, beside = Path(where), set(files)
            for name in sorted(files):
                path = place / name
                if name.endswith(".json") and not name.startswith("."):
                    samples = samples_file(path).name in beside
                    if samples or path.stem in TASKS or _is_study_place(place):
                        found.setdefault(path.stem, []).append(path)
    if not found:
        raise StoreError(
            f"{shown} holds no results (no TASK.json anywhere below it); `laura compare` and "
            "`laura evaluate` write them"
        )
    return found


def _is_study_place(folder: Path) -> bool:
    """Whether nothing but results stands in a folder: base/evals, runs/ID/evals/STEP."""
    names = [part.name for part in (folder, *folder.parents)][:4]
    return names[:2] == ["evals", BASE] or (names[1:2], names[3:]) == (["evals"], ["runs"])


def _raise(error: OSError) -> None:
    raise error


def choose_task(results: dict[str, list[Path]], name: str, folder: Path) -> str:
    """The task of this name.

    Raises:
        UsageError: it was not measured here; the nearest that was is named.
    """
    if name in results:
        return name
    near = _nearest(name.strip().lower().replace("-", "_"), results)
    raise UsageError(
        f"{visible_line(str(folder))} has no results of {visible_line(name)!r}.{near} There are: "
        f"{', '.join(visible_line(task) for task in sorted(results))}"
    )


def models_of(folder: Path, files: Sequence[Path]) -> list[MeasuredModel]:
    """The models whose results of one task these are: the base, the runs by arm, the others.

    A name that stands twice becomes its folder's path.
    """
    runs: dict[str, list[Path]] = {}
    bases, others = [], []
    for file in files:
        parts = file.parent.relative_to(folder).parts
        if len(parts) == 4 and (parts[0], parts[2]) == ("runs", "evals"):
            runs.setdefault(parts[1], []).append(file)
        elif parts in ((BASE, "evals"), (BASE,)):
            bases.append(MeasuredModel(BASE, BASE, file))
        else:
            name = "/".join(parts) or _field(file, "model", "") or folder.resolve().name
            others.append(MeasuredModel(name, name, file))
    described = sorted((_facts(folder / "runs" / run), run, own) for run, own in runs.items())
    models = bases + [one for facts, run, own in described for one in _steps(facts, run, own)]
    models += others
    names = [model.name for model in models]
    unique = []
    for model in models:
        if names.count(model.name) > 1:
            path = model.file.parent.relative_to(folder).as_posix()
            model = MeasuredModel(path, f"{model.title} ({path})", model.file)
        unique.append(model)
    return unique


def _field(file: Path, name: str, otherwise: T) -> T:
    """A field of a file, unless it is damaged: that is told when it is to be shown."""
    try:
        record = read_json(file)
    except StoreError:
        record = None
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, type(otherwise)) else otherwise


def _facts(run: Path) -> tuple[str, float, int]:
    """Arm, learning rate and seed of a run."""
    file = run / "run.json"
    rate = _field(file, "learning_rate", 0.0)
    return _field(file, "arm", ""), rate if math.isfinite(rate) else 0.0, _field(file, "seed", 0)


def _steps(facts: tuple[str, float, int], run: str, files: list[Path]) -> list[MeasuredModel]:
    """One model a measured step; the last answers to the run's ID and arm alone."""
    arm, learning_rate, seed = facts
    words = f"{arm}, rate {rate_text(learning_rate)}, seed {seed}, " if arm else ""
    found = []
    for file in files:
        text = file.parent.name
        step = str(int(text)) if text.isascii() and text.isdecimal() else text
        aliases = tuple(filter(None, (run, arm))) if file == files[-1] else ()
        found.append(MeasuredModel(f"{run}/{step}", f"{words}step {step}", file, aliases))
    return found


def choose_models(models: Sequence[MeasuredModel], wanted: Sequence[str]) -> list[MeasuredModel]:
    """The models of these names; without names the base, or the only one.

    Args:
        models: Those there are.
        wanted: Names, aliases or beginnings of names, also several with commas.

    Raises:
        UsageError: a name fits none (the nearest are named) or several (all are
            listed), a model is named twice, or there is neither a name nor a base.
    """
    known = [name for model in models for name in (model.name, *model.aliases)]
    names: list[str] = []
    for text in wanted:
        # A name may have a comma in it.
        parts = [text] if text in known else map(str.strip, text.split(","))
        names += filter(None, parts)
    if wanted and not names:
        raise UsageError(f"--model is empty; there are:\n{model_lines(models)}")
    if not names:
        bases = [model for model in models if model.name == BASE] or list(models)
        if len(bases) > 1:
            raise UsageError(f"choose with --model NAME; there are:\n{model_lines(models)}")
        return bases
    chosen = [_choose_model(models, name, known) for name in names]
    twice = [model.name for place, model in enumerate(chosen) if model in chosen[:place]]
    if twice:
        raise UsageError(f"--model names {visible_line(twice[0])} twice; name two that differ")
    return chosen


def _choose_model(models: Sequence[MeasuredModel], name: str, known: list[str]) -> MeasuredModel:
    for fitting in (
        [model for model in models if model.name == name],
        [model for model in models if name in model.aliases],
        [model for model in models if any(other.startswith(name) for other in model.aliases)],
        [model for model in models if model.name.startswith(name)],
    ):
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UsageError(
                f"--model {visible_line(name)} fits {len(fitting)} models; choose one of:\n"
                f"{model_lines(fitting)}"
            )
    raise UsageError(
        f"no model {visible_line(name)!r} was measured.{_nearest(name, known)} There are:\n"
        f"{model_lines(models)}"
    )


def model_lines(models: Sequence[MeasuredModel]) -> str:
    """One line a model: what `--model` takes, and what it is."""
    shown = models[:MOST_LISTED]
    width = max(len(visible_line(model.name)) for model in shown)
    lines = []
    for model in shown:
        name, title = visible_line(model.name), visible_line(model.title)
        lines.append(f"  {name}" if title == name else f"  {name:<{width}}  {title}")
    if len(models) > len(shown):
        lines.append(f"  and {len(models) - len(shown)} more")
    return "\n".join(lines)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(map(visible_line, near))}?" if near else ""


# ----- one task's samples of several models: read, with verdicts, filtered and paired -----

Key = tuple[int, int]
"""Index of the item, and number of the sample of it."""
Outcome = Literal["any", "failed", "passed", "differ", "forgotten", "gained"]


@dataclass(frozen=True)
class SampleFilter:
    """Which samples are wanted.

    Attributes:
        outcome: Of one model: those it failed or passed. Of several: those that any
            failed, that all passed, where their verdicts differ, or that the first alone
            passed (`forgotten`) or failed (`gained`) while another did not.
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
            with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as file:
                for place, line in enumerate(bounded_lines(file, path, MOST_SAMPLES_BYTES), 1):
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
    if wanted.outcome in ("differ", "forgotten", "gained") and len(models) < 2:
        raise UsageError(
            f"--{wanted.outcome} compares models; name two, as in --model base --model NAME"
        )
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
    if outcome in ("differ", "forgotten", "gained"):
        first = {"forgotten": {True}, "gained": {False}}.get(outcome, {True, False})
        return None not in verdicts and len(set(verdicts)) > 1 and verdicts[0] in first
    return False in verdicts if outcome == "failed" else all(verdicts)
