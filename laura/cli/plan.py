"""The command that tells what a recipe will take: `laura plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from laura.cli.console import Console
from laura.cli.options import RecipeOptions
from laura.results.errors import UsageError

MOST_PARAMETERS = 1e15


@dataclass(frozen=True)
class PlanOptions(RecipeOptions):
    """What is planned for."""

    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="1,8,...",
            help="Plan for so many GPUs, with sharding.",
            show_default="this machine, which is measured",
        ),
    ] = None
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Operations a second of one device, such as 2e14.",
            show_default="this machine's matrix products",
        ),
    ] = None
    epoch_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of one epoch, where the data is not here."),
    ] = None
    table: Annotated[
        str | None,
        typer.Option(
            metavar="PARAMETERS[,P]",
            help="Instead of a recipe: the paper's memory table for so many parameters, P the "
            "adapter's share of them, as in --table 7e9,0.01",
        ),
    ] = None


def plan(
    console: Console,
    options: PlanOptions,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="YAML file of a recipe or a series, or the name of a shipped one.",
        ),
    ] = None,
) -> None:
    """Say what a recipe or a series takes: memory, tokens, operations, time and disk.

    Nothing is trained and no weights are read; of the base config.json is enough. Of a series
    every setting is planned, and all of them together.

    \b
    Example:
      laura plan recipes/smollm2-gsm8k.yaml
      laura plan mine.yaml --set base.model=llama-2-7b --gpus 1,8,32 --flops-per-second 2e14
      laura plan micro/paper --setting code-instruct
      laura plan --table 7e9 --gpus 1,8,16,32,64
    """
    gpus = _numbers(options.gpus)
    if options.table is not None:
        _answer_table(console, *_table(options.table), gpus or [1, 8, 16, 32, 64])
        return
    if recipe is None:
        raise UsageError("laura plan needs a RECIPE, or --table PARAMETERS for the paper's")
    from laura.api import resolve_recipe
    from laura.recipe.sections import Recipe

    chosen = resolve_recipe(
        recipe,
        overrides=options.overrides,
        setting=options.setting,
        data_dir=options.data_dir,
    )
    from laura.study.plan.planning import plan as make_plan
    from laura.study.plan.planning import plan_series
    from laura.study.plan.text import plan_text, series_text

    given: dict[str, Any] = {
        "gpus": gpus,
        "device": options.device,
        "flops_per_second": options.flops_per_second,
        "epoch_tokens": options.epoch_tokens,
        "data_dir": options.data_dir,
    }
    if isinstance(chosen, Recipe):
        found = make_plan(chosen, **given)
        console.answer(found, plan_text(found))
    else:
        found = plan_series(chosen, **given)
        console.answer(found, series_text(found))


def _answer_table(console: Console, parameters: float, share: float, devices: list[int]) -> None:
    from laura.study.plan.text import paper_rows, paper_text

    value = {"parameters": parameters, "share": share, "devices": devices}
    value["rows"] = paper_rows(parameters, devices, share)
    console.answer(value, paper_text(parameters, devices, share))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    from laura.study.plan.planning import check_gpus

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--gpus wants whole numbers, as in --gpus 1,8,64; came {text}") from None
    return check_gpus(counts)


def _table(text: str) -> tuple[float, float]:
    from laura.study.plan.text import SHARE

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    share = numbers[1] if len(numbers) == 2 else SHARE
    if not 1 <= len(numbers) <= 2 or not 1 <= numbers[0] <= MOST_PARAMETERS or not 0 < share <= 1:
        raise UsageError(
            f"--table wants parameters from 1 to 1e15, and a share in (0, 1], as in "
            f"--table 7e9,0.01; came {text}"
        )
    return numbers[0], share
