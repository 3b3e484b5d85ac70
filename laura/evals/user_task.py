"""A user's own Python task: one file, named by its path where a task is named.

The file defines what Laura's own task files define: for a multiple-choice task VERSION,
METRICS and question(row, index); for one where the model writes METRICS,
prepare(rows, ask) and grades(questions, answers); and `ROWS`, a JSON Lines file relative
to it (or a named set, or a data set of the Hub), or a function `rows()`. It may say
TITLE, METRIC (the one that leads; the first by default) and HIGHER_IS_BETTER (true by
default). Metrics are shares, 0 to 1. The file is run as it is, with all that Python can
do: name only files whose code you trust.

The result is named after the file: `tasks/my_task.py` makes `my_task.json`. Its version
holds hashes of the file and of its rows, so that a changed one is measured again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from laura.data.rows import Placed
from laura.data.sources import find_data_dir, raw_rows
from laura.engine.requests import GenerateRequest
from laura.evals.scoring import ChoiceQuestion, TaskSettings
from laura.evals.tasks import Kind, TaskEntry
from laura.recipe.tasks import file_name_fault, task_file
from laura.results.errors import DataError, LauraError, UsageError
from laura.results.inputs import MOST_RECIPE_BYTES, read_bounded
from laura.results.task_result import Item

NEEDED: dict[Kind, tuple[str, ...]] = {
    "choice": ("VERSION", "METRICS", "question"),
    "generation": ("METRICS", "prepare", "grades"),
}
CHOICE_METRICS = ("acc", "acc_norm")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


# What a name must hold, where the file has it.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("question", "prepare", "grades", "rows"), (callable, "a function")),
    **dict.fromkeys(("ROWS", "TITLE", "METRIC"), (_is_text, "text")),
    "HIGHER_IS_BETTER": (lambda value: isinstance(value, bool), "True or False"),
    "METRICS": (lambda value: isinstance(value, tuple | list) and bool(value), "a tuple of names"),
}


def find(name: str, data_dir: Path | None = None) -> Path:
    """Where a user's task file lies.

    Args:
        name: Its path, relative to here or to the data folder.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        UsageError: it is nowhere, or its name cannot be a result's, or is a task's of Laura.
    """
    fault = file_name_fault(name)
    if fault:
        raise UsageError(f"{name}: {fault}")
    place = task_file(name, find_data_dir(data_dir))
    if place is None:
        raise UsageError(f"{name} cannot be read (there is no such file); check the path")
    return place


class UserTask:
    """What stands in a user's Python file, as the runner needs it.

    Args:
        module: The file, run.
        path: Where it stands.
        text: What stands in it.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        UsageError: names are missing or hold the wrong things; all of them.
    """

    def __init__(
        self, module: ModuleType, path: Path, text: str, data_dir: Path | None = None
    ) -> None:
        self.module, self.path, self.text, self._data_dir = module, path, text, data_dir
        kind = self._kind()
        faults = list(self._faults(kind))
        if faults:
            raise UsageError(f"{path}: {'; '.join(faults)}")
        self.METRICS: tuple[str, ...] = tuple(module.METRICS)
        title, metric = getattr(module, "TITLE", path.stem), getattr(module, "METRIC", "")
        higher = getattr(module, "HIGHER_IS_BETTER", True)
        self.entry = TaskEntry(
            str(path), title, metric or self.METRICS[0], kind, higher_is_better=higher
        )

    @classmethod
    def load(cls, path: Path, data_dir: Path | None = None) -> UserTask:
        """Run a file and check what it defines.

        Raises:
            UsageError: it cannot be read, does not run, or lacks names.
        """
        try:
            text = StringIO(read_bounded(path, MOST_RECIPE_BYTES).decode(), None).read()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"{path} cannot be read ({reason}); check the path") from error
        name = f"laura_user_task_{path.stem}_{_hash_of(str(path.resolve()))}"
        module = ModuleType(name)
        module.__file__ = str(path)
        # Dataclasses look their module up by name.
        sys.modules[name] = module
        try:
            # The very text that is hashed is run; an import could run an older, compiled one.
            exec(compile(text, str(path), "exec", dont_inherit=True), vars(module))
        except LauraError:
            raise
        except Exception as error:
            raise UsageError(f"{path} does not run: {_told(error, path)}") from error
        return cls(module, path, text, data_dir)

    @property
    def VERSION(self) -> str:
        """The file's own version, and what changes with its words and rows."""
        return self._marked(str(self.module.VERSION))

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in order.

        Raises:
            DataError: a file is missing or broken, or `rows()` fails or gives no rows.
        """
        return [row for _, row in self._placed]

    def question(self, row: dict[str, Any], index: int) -> ChoiceQuestion:
        """The user's question of a row.

        Raises:
            DataError: their function fails, or gives something else; with the row's place.
        """
        place = self._placed[index][0]
        with self._watched("question()", place):
            found = self.module.question(row, index)
        if not isinstance(found, ChoiceQuestion):
            raise DataError(
                f"{self.path}: question() gave {type(found).__name__} for {place}; it must give "
                "a laura.evals.scoring.ChoiceQuestion"
            )
        sizes = {len(found.requests), len(found.choice_characters)}
        if len(sizes) > 1 or found.index != index or not 0 <= found.gold < len(found.requests):
            raise DataError(
                f"{self.path}: question() gave {len(found.requests)} requests, "
                f"{len(found.choice_characters)} choice_characters, gold {found.gold} and index "
                f"{found.index} for {place}; the first two must be equally many, gold one of "
                f"them from 0, and the index {index}"
            )
        return found

    def prepare(self, rows: Sequence[dict[str, Any]], ask: TaskSettings) -> tuple[str, list[Any]]:
        """Version and questions, the user's own.

        Raises:
            DataError: their function fails, or a question lacks its requests.
        """
        with self._watched("prepare()"):
            version, found = self.module.prepare(rows, ask)
            questions = list(found)
        for question in questions:
            asked: Any = getattr(question, "requests", None)
            asked = list(asked) if isinstance(asked, tuple | list) else []
            right = asked and all(_is_request(one) for one in asked)
            if not right or not isinstance(getattr(question, "index", None), int):
                raise DataError(
                    f"{self.path}: prepare() gave {repr(question)[:80]}; a question needs "
                    "index (its row) and requests, a tuple of laura.engine.requests."
                    "GenerateRequest (prompt: text, stop: tuple of texts, max_new_tokens: number)"
                )
        return self._marked(str(version)), questions

    def grades(
        self, questions: Sequence[Any], answers: Sequence[Any]
    ) -> Iterator[tuple[Item, list[Item]]]:
        """Items and samples, the user's own.

        Raises:
            DataError: their function fails, or an item lacks a metric.
        """
        with self._watched("grades()"):
            for item, samples in self.module.grades(questions, answers):
                missing = [name for name in ("index", *self.METRICS) if name not in item]
                if missing:
                    raise DataError(
                        f"{self.path}: grades() gave an item without {', '.join(missing)}; its "
                        f"fields are {', '.join(map(str, item))}"
                    )
                yield item, list(samples)

    @functools.cached_property
    def _placed(self) -> list[Placed]:
        if hasattr(self.module, "ROWS"):
            return raw_rows(self.module.ROWS, self.path.parent, self._data_dir)
        with self._watched("rows()"):
            found = list(self.module.rows())
        if not found or not all(isinstance(row, dict) for row in found):
            came = "none" if not found else "something else"
            raise DataError(f"{self.path}: rows() must give dictionaries, came {came}")
        return [(f"rows() of {self.path}, row {number}", row) for number, row in enumerate(found)]

    def _marked(self, version: str) -> str:
        return f"{version}; task {_hash_of(self.text)}; rows {_hash_of(self.rows())}"

    def _kind(self) -> Kind:
        names = vars(self.module)
        if "question" in names:
            return "choice"
        if "prepare" in names or "grades" in names:
            return "generation"
        raise UsageError(
            f"{self.path} is no task: define {', '.join(NEEDED['choice'])} for a multiple-choice "
            f"task, or {', '.join(NEEDED['generation'])} for one where the model writes; and ROWS "
            "or rows()"
        )

    def _faults(self, kind: Kind) -> Iterator[str]:
        names = vars(self.module)
        missing = [name for name in NEEDED[kind] if name not in names]
        if not {"ROWS", "rows"} & names.keys():
            missing.append("ROWS or rows()")
        if missing:
            yield f"lacks {', '.join(missing)}"
        wrong = {
            name: form
            for name, (right, form) in _FORMS.items()
            if name in names and not right(names[name])
        }
        for name, form in wrong.items():
            yield f"{name} must be {form}, came {names[name]!r}"
        if "METRICS" not in names or "METRICS" in wrong:
            return
        metrics = names["METRICS"]
        unknown = [name for name in metrics if name not in CHOICE_METRICS]
        if kind == "choice" and unknown:
            yield f"METRICS of a multiple-choice task are of {CHOICE_METRICS}, came {unknown}"
        if names.get("METRIC", metrics[0]) not in metrics:
            yield f"METRIC must be one of METRICS, came {names['METRIC']!r}"

    @contextmanager
    def _watched(self, function: str, place: str = "") -> Iterator[None]:
        """Tell what a function of the user's raises in words."""
        try:
            yield
        except LauraError:
            raise
        except Exception as error:
            where = f" on {place}" if place else ""
            raise DataError(
                f"{self.path}: {function} failed{where}: {_told(error, self.path)}"
            ) from error


def _hash_of(value: Any) -> str:
    """Twelve hexadecimal digits that change with the value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_request(one: Any) -> bool:
    return (
        isinstance(one, GenerateRequest)
        and isinstance(one.prompt, str)
        and isinstance(one.max_new_tokens, int)
        and isinstance(one.stop, tuple)
        and all(isinstance(text, str) for text in one.stop)
    )


def _told(error: Exception, path: Path) -> str:
    """An exception with the line of the user's file it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else None)
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
