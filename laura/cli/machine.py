"""The commands on models and this machine: `laura merge`, `fetch`, `doctor` and `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laura.cli.console import Console
from laura.cli.options import DataOption, DeviceOption
from laura.results.errors import EXIT_USER


def merge(
    console: Console,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model the adapter is for.")],
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", exists=True, file_okay=False, help="Adapter folder."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the merged model.")],
    device: DeviceOption = None,
) -> None:
    """Add an adapter's updates into the weights.

    Saves a model that needs no adapter, and says how far the merged model's
    logits are from the adapter's.

    \b
    Example:
      laura merge smollm2-135m-instruct-q4 studies/demo/runs/ID/checkpoints/STEP merged
    """
    from laura.study.workbench import merge_adapter

    answer = merge_adapter(base, adapter, out, device=device, progress=console.progress)
    lines = (
        f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in answer.items()
    )
    console.answer(answer, "\n".join(lines))


def fetch(
    console: Console,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry, or Hub id.")],
) -> None:
    """Get a named model, with checksum.

    \b
    Example:
      laura fetch smollm2-135m-instruct-q4
    """
    from laura.models.fetch import fetch as fetch_model

    folder = fetch_model(name, console.progress)
    console.answer({"name": name, "folder": str(folder)}, f"{name} is at {folder}")


def doctor(
    console: Console,
    network: Annotated[
        bool, typer.Option("--network", help="Also ask whether the Hub can be reached.")
    ] = False,
    vllm: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Also start vLLM with this base, and ask it and made-up adapters alone and "
            "together; a minute or two.",
        ),
    ] = None,
    data_dir: DataOption = None,
) -> int | None:
    """Say what this machine can do and what is missing.

    Exits with 2 when something that every comparison needs is missing.

    \b
    Example:
      laura doctor --network
    """
    from laura.cli.doctor import examine

    findings = examine(data_dir, network, vllm)
    usable = not any(finding.state == "missing" for finding in findings)
    value = {"usable": usable, "findings": [vars(finding) for finding in findings]}
    console.answer(value, "\n".join(finding.text() for finding in findings))
    return None if usable else EXIT_USER


def schema(console: Console) -> None:
    """Print the JSON Schema of a recipe, for editors.

    \b
    Example:
      laura schema > recipe.schema.json
      Then write this into the first line of a recipe:
      # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from laura.recipe.series import recipe_schema

    text = recipe_schema()
    console.answer(json.loads(text), text)
