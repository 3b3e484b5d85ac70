"""Options of commands: a dataclass a command, and what several share.

What an option means stands below its field and is its help, as it is with the keys of a
recipe. A command's own options are told before those that it shares.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from laura.cli.completion import OFFERED


def option(*names: str, default: Any = None, **how: Any) -> Any:
    """A field that is an option.

    Args:
        *names: What it is called; by default as the field, a switch without `--no-`.
        default: MISSING for one that must be given.
        **how: As `typer.Option`; `help` where nothing stands below the field.
    """
    metadata = {"make": typer.Option, "names": names, "how": how}
    return field(default=default, metadata=metadata)


def argument(default: Any = MISSING, **how: Any) -> Any:
    """A field that is an argument; `how` is as for `typer.Argument`."""
    return field(default=default, metadata={"make": typer.Argument, "names": (), "how": how})


def parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """What typer makes a command's arguments and options of."""
    hints, known = get_type_hints(kind), {one.name: one for one in fields(kind)}
    below = [(owner, name) for owner in kind.__mro__ for name in inspect.get_annotations(owner)]
    # Arguments are given in the order of the fields, in which what is shared comes first.
    arguments = [name for name in known if known[name].metadata["make"] is typer.Argument]
    below.sort(key=lambda one: arguments.index(one[1]) if one[1] in arguments else len(arguments))
    found = []
    for owner, name in below:
        asked, hint = known[name].metadata, hints[name]
        words = _words(owner.__module__).get((owner.__name__, name))
        names = asked["names"] or ([f"--{name.replace('_', '-')}"] if hint is bool else [])
        offered = OFFERED.get(asked["how"].get("metavar"))
        info = asked["make"](*names, **{"help": words, "autocompletion": offered, **asked["how"]})
        default = known[name].default
        default = inspect.Parameter.empty if default is MISSING else default
        found.append(parameter(name, Annotated[hint, info], default))
    return found


def parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """A parameter of a function as typer reads it."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=hint)


@functools.cache
def _words(module: str) -> dict[tuple[str, str], str]:
    """What stands below the fields of a file's classes, by class and field."""
    found: dict[tuple[str, str], str] = {}
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:  # compiled files alone are installed
        return found
    for owner in (one for one in tree.body if isinstance(one, ast.ClassDef)):
        for above, below in itertools.pairwise(owner.body):
            match above, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[owner.name, name] = " ".join(text.split())
    return found


# ----- what several commands share -----


BASE = {"metavar": "BASE", "help": "Registry name, folder, GGUF file or Hub id."}
RECIPE = {"metavar": "RECIPE", "help": "YAML file, or the name of a shipped recipe."}
STUDY = {"metavar": "STUDY", "help": "Study folder."}
ADAPTER = {
    "metavar": "[NAME=]DIR",
    "help": "LoRA adapter in PEFT's format. Repeatable: all are asked in one pass.",
}
DEVICE = {"metavar": "NAME", "help": "cpu, cuda, cuda:N or mps; the best by default."}
DATA: dict[str, Any] = {
    "envvar": "LAURA_DATA", "exists": True, "file_okay": False, "metavar": "DIR",
    "help": "Folder of local data; it wins over the Hub.",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is measured with, and where."""

    overrides: list[str] | None = option("--set", metavar="SECTION.KEY=VALUE")
    """Override one value of the recipe, as in --set train.batch_tokens=4096. Repeatable."""
    data_dir: Path | None = option(**DATA)
    device: str | None = option(**DEVICE)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(MeasureOptions):
    """Which of a recipe's values and settings are meant."""

    setting: str | None = option(metavar="NAME")
    """Only this setting of a series."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(RecipeOptions):
    """Where a study of a recipe lies."""

    out: Path | None = option(metavar="DIR", show_default="studies/NAME")
    """Study folder."""
