"""The command line: every command by name. What is heavy a command imports when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from laura import __version__
from laura.cli.chat import chat
from laura.cli.console import command, listen_for_stop
from laura.cli.decision import claims, gate, recommend
from laura.cli.init import init
from laura.cli.machine import doctor, fetch, merge, push, schema, sign
from laura.cli.mcp import mcp
from laura.cli.measurement import evaluate, remedy, show, spectra
from laura.cli.serve import serve
from laura.cli.study import compare, plan, report, track, train, watch
from laura.cli.tenants import tenants

app = typer.Typer(
    name="laura",
    help="LoRA or full finetuning, at which settings, and what will the model forget?\n\n"
    "\b\nStart with:\n  laura compare   a comparison on a tiny model, about eight minutes\n"
    "  laura init      a recipe for your own data\n"
    "  laura doctor    what this machine can do and what is missing\n\n"
    "\b\nExit codes: 0 done, 2 a mistake you can mend, 1 a bug of ours, 130 stopped,\n"
    "4 a `gate` that is not passed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; the entry point of `laura`."""
    listen_for_stop()
    app(prog_name="laura")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"laura {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


for _function in (
    init, compare, watch, train, track, evaluate, claims, recommend, gate, remedy, plan, report,
    show, spectra, chat, serve, mcp, merge, sign, push, fetch, doctor, schema,
):  # fmt: skip
    command(app)(_function)
app.add_typer(tenants, name="tenants")
