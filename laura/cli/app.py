"""The commands. Everything heavy is imported inside them, so that help costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from laura import __version__
from laura.cli.answers import answer_training, facts_text, finding_text
from laura.cli.chat import chat
from laura.cli.claims import claims
from laura.cli.console import listen_for_stop, opened
from laura.cli.evaluate import evaluate
from laura.cli.lm_eval import FOREIGN, lm_eval
from laura.cli.micro import micro
from laura.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SettingOption,
    StudyOption,
)
from laura.cli.plan import plan
from laura.cli.recommend import gate, recommend
from laura.cli.serve import serve
from laura.cli.show import show
from laura.cli.spectra import spectra
from laura.cli.study import carry_out, draw_and_answer, judge_again, read_chosen, read_setting
from laura.cli.tenants import tenants

DEFAULT_RECIPE = "micro"

app = typer.Typer(
    name="laura",
    help="LoRA or full finetuning, at which settings, and what will the model forget?\n\n"
    "\b\nStart with:\n  laura compare   a comparison on a tiny model, about five minutes\n"
    "  laura doctor    what this machine can do and what is missing\n\n"
    "\b\nExit codes: 0 done, 2 a mistake you can mend, 1 a bug of ours, 130 stopped,\n"
    "4 a `gate` that is not passed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(micro, name="micro")
app.add_typer(tenants, name="tenants")


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


@app.command()
def compare(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    settings: SetOption = None,
    data_dir: DataOption = None,
    out: StudyOption = None,
    device: DeviceOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Runs carried out side by side, each in a process.",
            show_default="1; for a tiny base one a core",
        ),
    ] = None,
    only: SettingOption = None,
    confirm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARM@RATE",
            help="Also run this arm at this rate with fresh seeds, which had no part in choosing "
            "it. Repeatable.",
        ),
    ] = None,
    confirm_seeds: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="Fresh seeds of each --confirm.")
    ] = 3,
    json: JsonOption = False,
) -> None:
    """Compare arms: what each learns, what it forgets.

    Evaluates the base, trains every arm at every learning rate with every seed,
    measures, and writes summary.json and report.html into the study folder.
    Stopped or killed, the same command continues; finished runs are never repeated.
    A series is carried out setting by setting, each a study of its own.

    \b
    Example:
      laura compare recipes/smollm2-gsm8k.yaml --data-dir data --set seeds=[0]
    """
    with opened(json) as desk:
        # First the recipe: whoever mistyped it should not wait for torch to be told.
        chosen = read_chosen(recipe, settings, data_dir, only)
        study = out or Path("studies") / chosen.name
        carry_out(
            chosen, study, data_dir, device, workers, desk.progress, confirm or (), confirm_seeds
        )
        draw_and_answer(desk, study)


@app.command()
def train(
    recipe: RecipeArgument,
    arm: Annotated[str, typer.Option("--arm", metavar="NAME", help="Arm of the recipe to train.")],
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Learning rate.", show_default="the arm's only one"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed.", show_default="the recipe's first")
    ] = None,
    settings: SetOption = None,
    data_dir: DataOption = None,
    out: StudyOption = None,
    device: DeviceOption = None,
    only: SettingOption = None,
    json: JsonOption = False,
) -> None:
    """Train one run: an arm, a learning rate, a seed.

    The run lands in the study folder where `laura compare` finds it again.

    \b
    Example:
      laura train recipes/smollm2-gsm8k.yaml --arm lora --learning-rate 3e-4
    """
    with opened(json) as desk:
        chosen = read_setting(recipe, settings, data_dir, only)
        from laura.study.single import train as run_training

        answer = run_training(
            chosen,
            arm=arm,
            learning_rate=learning_rate,
            seed=seed,
            study=out or Path("studies") / chosen.name,
            data_dir=data_dir,
            device=device,
            progress=desk.progress,
        )
        answer_training(desk, answer)


app.command()(evaluate)
app.command()(claims)
app.command()(recommend)
app.command()(gate)
app.command()(plan)


@app.command()
def report(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Folder of a study, or of a series.")
    ],
    form: Annotated[
        Literal["html", "md"],
        typer.Option("--format", help="html: report.html, one page for a browser; md: report.md."),
    ] = "html",
    json: JsonOption = False,
) -> None:
    """Draw the report again from a study folder alone.

    Figures for a paper lie in STUDY/figures, as SVG and PNG.

    \b
    Example:
      laura report studies/smollm2-demo --format md
    """
    with opened(json) as desk:
        judge_again(desk, study)
        draw_and_answer(desk, study, form)


app.command()(show)
app.command()(spectra)
app.command()(chat)
app.command("lm-eval", context_settings=FOREIGN)(lm_eval)
app.command()(serve)


@app.command()
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model the adapter is for.")],
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", exists=True, file_okay=False, help="Adapter folder."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the merged model.")],
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Add an adapter's updates into the weights.

    Saves a model that needs no adapter, and says how far the merged model's
    logits are from the adapter's.

    \b
    Example:
      laura merge smollm2-135m-instruct-q4 studies/demo/runs/ID/checkpoints/STEP merged
    """
    with opened(json) as desk:
        from laura.study.merging import merge_adapter

        answer = merge_adapter(base, adapter, out, device=device, progress=desk.progress)
        desk.answer(answer, facts_text(answer))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry, or Hub id.")],
    json: JsonOption = False,
) -> None:
    """Get a named model, with checksum.

    \b
    Example:
      laura fetch smollm2-135m-instruct-q4
    """
    with opened(json) as desk:
        from laura.models.fetch import fetch as fetch_model

        folder = fetch_model(name, desk.progress)
        desk.answer({"name": name, "folder": str(folder)}, f"{name} is at {folder}")


@app.command()
def doctor(
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
    json: JsonOption = False,
) -> None:
    """Say what this machine can do and what is missing.

    Exits with 2 when something that every comparison needs is missing.

    \b
    Example:
      laura doctor --network
    """
    with opened(json) as desk:
        from dataclasses import asdict

        from laura.cli.doctor import examine

        findings = examine(data_dir, network, vllm)
        usable = not any(finding.state == "missing" for finding in findings)
        value = {"usable": usable, "findings": [asdict(finding) for finding in findings]}
        desk.answer(value, "\n".join(finding_text(finding) for finding in findings))
    if not usable:
        raise typer.Exit(2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    \b
    Example:
      laura schema > recipe.schema.json
      Then write this into the first line of a recipe:
      # yaml-language-server: $schema=recipe.schema.json
    """
    with opened() as desk:
        from laura.recipe.reading import recipe_schema

        desk.answer({}, recipe_schema())
