"""A user's own task: one YAML or Python file, named by its path where a task is named.

YAML needs no code: `kind: multiple_choice` or `kind: exact_match`, and templates over
the rows' fields (`user_yaml` lists every key; docs/examples/ has one of each).

Python is for the rest. The file defines what Laura's own task files define: for a
multiple-choice task VERSION, METRICS and question(row, index); for one where the model
writes METRICS, prepare(rows, ask) and grades(questions, answers); and `ROWS`, a JSON
Lines file relative to it, or a function `rows()`. It may say TITLE, METRIC (the one that
leads; the first by default) and HIGHER_IS_BETTER (true by default). Metrics are shares,
0 to 1. The file is run as it is, with all that Python can do: name only files whose
code you trust.

The result is named after the file: `tasks/my_task.yaml` makes `my_task.json`. Its
version holds hashes of the file and of its rows, so that a changed one is measured again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.data.sources import find_data_dir
from laura.evals.tasks import TaskEntry
from laura.evals.user_modules import ChoiceModule, MatchModule
from laura.evals.user_python import PythonModule
from laura.evals.user_yaml import ChoiceFile, MatchFile, kind_of
from laura.recipe.reading import read_section
from laura.recipe.tasks import file_name_fault, is_task_file, task_file
from laura.results.errors import UsageError

SPLIT = "file"  # the only split a user's task has


@dataclass(frozen=True)
class UserTask:
    """A user's task, as the runner needs it.

    Attributes:
        name: Name of its result: the file's name without its ending.
        path: The file.
        entry: As one of the table of tasks.
        module: Has VERSION, METRICS and question, or METRICS, prepare and grades.
        rows: The rows that are measured, given a data folder (or None).
    """

    name: str
    path: Path
    entry: TaskEntry
    module: Any
    rows: Callable[[Path | None], list[dict[str, Any]]]


def is_user_task(name: str) -> bool:
    """Whether a task's name means a file of the user's."""
    return is_task_file(name)


def result_name(path: str | Path) -> str:
    """Name of the result of the task in a file, without reading it.

    Raises:
        UsageError: the file's name cannot be one, or is a task's of Laura.
    """
    fault = file_name_fault(path)
    if fault:
        raise UsageError(f"{path}: {fault}")
    return Path(path).stem


def load(path: str | Path, data_dir: Path | None = None) -> UserTask:
    """Read a user's task.

    Args:
        path: The file, relative to here or to the data folder.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        UsageError: its name cannot be used; a Python file does not run or lacks names.
        RecipeError: a YAML file has faults; all of them, with their lines.
    """
    name = result_name(path)
    place = task_file(str(path), find_data_dir(data_dir)) or Path(path).expanduser()
    if place.suffix == ".py":
        module: Any = PythonModule.load(place)
        kind, title, metric, higher = module.kind, module.title, module.metric, module.higher
    else:
        file = read_section(place, kind_of)
        title, higher = file.title or name, True
        if isinstance(file, ChoiceFile):
            module, kind, metric = ChoiceModule(file, place), "choice", file.metric
        else:
            assert isinstance(file, MatchFile)
            module, kind, metric = MatchModule(file, place), "generation", "exact_match"
    entry = TaskEntry(str(place), title, "share", metric, higher, kind, SPLIT)
    return UserTask(name, place, entry, module, module.rows)
