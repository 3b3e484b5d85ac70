"""Which models were measured on which tasks: found in a folder, and chosen by name.

The folder is a study's, or one that `laura evaluate` wrote.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from laura.evals.tasks import TASKS
from laura.report.visible import visible_line
from laura.results.errors import StoreError, UsageError
from laura.results.store import disk_faults, read_json
from laura.results.task_result import samples_file
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
