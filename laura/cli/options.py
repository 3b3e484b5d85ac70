"""Arguments and options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

BaseArgument = Annotated[
    str, typer.Argument(metavar="BASE", help="Registry name, folder, GGUF file or Hub id.")
]
RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a shipped recipe.")
]
StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="Study folder.")]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="[NAME=]DIR",
        help="LoRA adapter in PEFT's format. Repeatable: all are asked in one pass.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one value of the recipe, as in --set train.batch_tokens=4096. Repeatable.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        envvar="LAURA_DATA",
        exists=True,
        file_okay=False,
        metavar="DIR",
        help="Folder of local data; it wins over the Hub.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:N or mps; the best by default.")
]
SettingOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this setting of a series.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Study folder.", show_default="studies/NAME")
]


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured with, and where."""

    overrides: SetOption = None
    data_dir: DataOption = None
    device: DeviceOption = None


@dataclass(frozen=True)
class RecipeOptions(MeasureOptions):
    """Which of a recipe's values and settings are meant."""

    setting: SettingOption = None


@dataclass(frozen=True)
class StudyOptions(RecipeOptions):
    """Where a study of a recipe lies."""

    out: OutOption = None
