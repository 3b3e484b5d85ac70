"""The commands on recipes and study folders: `laura compare`, `train` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import laura
from laura.cli.console import Console
from laura.cli.options import RecipeArgument, StudyOptions

if TYPE_CHECKING:
    from laura.results.schema import Summary

DEFAULT_RECIPE = "micro"


def compare(
    console: Console,
    options: StudyOptions,
    recipe: RecipeArgument = DEFAULT_RECIPE,
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
    found = laura.compare(
        recipe,
        workers=workers,
        confirm=confirm,
        confirm_seeds=confirm_seeds,
        progress=console.progress,
        **vars(options),
    )
    _answer(console, found)


def train(
    console: Console,
    recipe: RecipeArgument,
    arm: Annotated[str, typer.Option(metavar="NAME", help="Arm of the recipe to train.")],
    options: StudyOptions,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Learning rate.", show_default="the arm's only one"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed.", show_default="the recipe's first")
    ] = None,
) -> None:
    """Train one run: an arm, a learning rate, a seed.

    The run lands in the study folder where `laura compare` finds it again.

    \b
    Example:
      laura train recipes/smollm2-gsm8k.yaml --arm lora --learning-rate 3e-4
    """
    made = laura.train(
        recipe,
        arm,
        learning_rate=learning_rate,
        seed=seed,
        progress=console.progress,
        **vars(options),
    )
    runs = [run.model_dump() for run in made.runs]
    text = "\n".join(f"{run.id}: {run.state}, in {run.folder}" for run in made.runs)
    console.answer({"runs": runs, "summary": _without_curves(made.summary)}, text)


def report(
    console: Console,
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Folder of a study, or of a series.")
    ],
    form: Annotated[
        Literal["html", "md"],
        typer.Option("--format", help="html: report.html, one page for a browser; md: report.md."),
    ] = "html",
) -> None:
    """Draw the report again from a study folder alone.

    Figures for a paper lie in STUDY/figures, as SVG and PNG.

    \b
    Example:
      laura report studies/smollm2-demo --format md
    """
    _answer(console, laura.write_report(study, form, progress=console.progress))


def _answer(console: Console, found: laura.StudyResults | laura.SeriesResults) -> None:
    """Show a study or each of a series: its answer with the table, and where the report is."""
    if isinstance(found, laura.StudyResults):
        console.answer(_value(found), *_shown(found))
        return
    from laura.cli.decision import claims_table

    value = {
        "series": str(found.folder),
        "report": str(found.report),
        "settings": {name: _value(study) for name, study in found.settings.items()},
        "judgement": found.judgement and found.judgement.model_dump(mode="json"),
    }
    shown = [part for name, one in found.settings.items() for part in (f"\n{name}", *_shown(one))]
    table = [claims_table(found.judgement)] if found.judgement else []
    console.answer(value, *shown, *table, f"\nReport: {found.report}")


def _value(study: laura.StudyResults) -> dict[str, Any]:
    judgement = study.judgement and study.judgement.model_dump(mode="json")
    places = {"study": str(study.folder), "report": str(study.report)}
    return {**places, **_without_curves(study.summary), "judgement": judgement}


def _shown(study: laura.StudyResults) -> list[Any]:
    from laura.report.tables import summary_table

    return [summary_table(study), f"\nReport: {study.report}"]


def _without_curves(summary: Summary) -> dict[str, Any]:
    """The summary without the training curves, which are long and lie in summary.json."""
    return summary.model_dump(mode="json", exclude={"runs": {"__all__": {"loss_curve"}}})
