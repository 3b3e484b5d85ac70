"""The commands on the micro laboratory: `laura micro ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laura.cli.console import opened

micro = typer.Typer(
    help="The micro laboratory: a tiny pretrained base and its world, which come with Laura.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@micro.callback()
def _root() -> None:
    pass


@micro.command()
def check(
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Another micro base, made by scripts/make_micro_base.py.",
            show_default="the one that comes with Laura",
        ),
    ] = None,
    study: Annotated[
        list[Path] | None,
        typer.Option(
            "--study",
            metavar="DIR",
            help="Study folder of a comparison on it. Repeatable.",
            show_default="studies/micro",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text, for machines.")
    ] = False,
) -> None:
    """Measure what must be true of the micro laboratory, and say whether it is.

    Exits with 2 when something does not hold; what could not be looked at is told.

    \b
    Example:
      laura micro check --study studies/micro
    """
    with opened(json) as desk:
        from dataclasses import asdict

        from laura.models.registry import MICRO_BASE
        from laura.study.micro_check import check_base, check_study

        # A base that was made elsewhere has its data beside it.
        data_dir = None if base is None else base / "data"
        checks = check_base(base or MICRO_BASE, data_dir, device, desk.progress)
        for folder in study or [Path("studies/micro")]:
            checks += check_study(folder)
        holds = not any(one.holds is False for one in checks)
        words = {True: "ok", False: "NOT SO", None: "not known"}
        lines = [f"{words[c.holds]:<10}{c.what}: {c.found} ({c.wanted})" for c in checks]
        desk.answer({"holds": holds, "checks": [asdict(one) for one in checks]}, "\n".join(lines))
    if not holds:
        raise typer.Exit(2)
