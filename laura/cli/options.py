"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a shipped recipe.")
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
        "--data-dir",
        envvar="LAURA_DATA",
        exists=True,
        file_okay=False,
        metavar="DIR",
        help="Folder of local data; it wins over the Hub.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps; the best by default."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text, for machines.")
]
StudyOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Study folder.", show_default="studies/NAME"),
]
SettingOption = Annotated[
    str | None,
    typer.Option("--setting", metavar="NAME", help="Only this setting of a series."),
]
