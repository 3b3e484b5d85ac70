"""The command that tells what a recipe will take: `laura plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from laura.cli.console import opened
from laura.cli.options import DataOption, DeviceOption, JsonOption, SetOption, SettingOption
from laura.results.errors import UsageError

RecipeOrNone = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE", help="YAML file of a recipe or a series, or the name of a shipped one."
    ),
]
GpusOption = Annotated[
    str | None,
    typer.Option(
        metavar="1,8,...",
        help="Plan for so many GPUs, with sharding.",
        show_default="this machine, which is measured",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Operations a second of one device, such as 2e14.",
        show_default="this machine's matrix products",
    ),
]
EpochOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tokens of one epoch, where the data is not here."),
]
TableOption = Annotated[
    str | None,
    typer.Option(
        metavar="PARAMETERS[,P]",
        help="Instead of a recipe: the paper's memory table for so many parameters, P the "
        "adapter's share of them, as in --table 7e9,0.01",
    ),
]


def plan(
    recipe: RecipeOrNone = None,
    gpus: GpusOption = None,
    flops_per_second: RateOption = None,
    epoch_tokens: EpochOption = None,
    table: TableOption = None,
    settings: SetOption = None,
    only: SettingOption = None,
    data_dir: DataOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
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
    with opened(json) as desk:
        from laura.study.plan_text import paper_text, plan_text, series_text

        counts = _numbers(gpus)
        if table is not None:
            from laura.study.plan_paper import paper_rows

            parameters, share = _table(table)
            devices = counts or [1, 8, 16, 32, 64]
            value = {"parameters": parameters, "share": share, "devices": devices}
            value["rows"] = paper_rows(parameters, devices, share)
            desk.answer(value, paper_text(parameters, devices, share))
            return
        if recipe is None:
            raise UsageError("laura plan needs a RECIPE, or --table PARAMETERS for the paper's")
        from laura.cli.study import read_chosen
        from laura.recipe.sections import Recipe

        chosen = read_chosen(recipe, settings, data_dir, only)
        from laura.study.plan import plan as make_plan
        from laura.study.plan_series import plan_series

        options: dict[str, Any] = {
            "gpus": counts,
            "device": device,
            "flops_per_second": flops_per_second,
            "epoch_tokens": epoch_tokens,
            "data_dir": data_dir,
        }
        if isinstance(chosen, Recipe):
            found = make_plan(chosen, **options)
            desk.answer(found, plan_text(found))
        else:
            found = plan_series(chosen, **options)
            desk.answer(found, series_text(found))


def _numbers(text: str | None) -> list[int] | None:
    from laura.study.plan import check_gpus

    if text is None:
        return None
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--gpus wants whole numbers, as in --gpus 1,8,64; came {text}") from None
    return check_gpus(counts)


def _table(text: str) -> tuple[float, float]:
    from laura.study.plan_paper import SHARE

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    share = numbers[1] if len(numbers) == 2 else SHARE
    if not 1 <= len(numbers) <= 2 or not 1 <= numbers[0] <= 1e15 or not 0 < share <= 1:
        raise UsageError(
            f"--table wants parameters from 1 to 1e15, and a share in (0, 1], as in "
            f"--table 7e9,0.01; came {text}"
        )
    return numbers[0], share
