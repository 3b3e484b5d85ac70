"""The command that tells what a recipe will take: `laura plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from laura.cli.console import Console
from laura.cli.options import RecipeOptions, argument, option
from laura.results.errors import UsageError

MOST_PARAMETERS = 1e15


@dataclass(frozen=True, kw_only=True)
class PlanOptions(RecipeOptions):
    """What is planned for."""

    recipe: str | None = argument(None, metavar="RECIPE")
    """YAML file of a recipe or a series, or the name of a shipped one."""
    gpus: str | None = option(metavar="1,8,...", show_default="this machine, which is measured")
    """Plan for so many GPUs, with sharding."""
    flops_per_second: float | None = option(
        metavar="RATE", show_default="this machine's matrix products"
    )
    """Operations a second of one device, such as 2e14."""
    epoch_tokens: int | None = option(min=1, metavar="N")
    """Tokens of one epoch, where the data is not here."""
    table: str | None = option(metavar="PARAMETERS[,P]")
    """Instead of a recipe: the paper's memory table for so many parameters, P the adapter's share
    of them, as in --table 7e9,0.01"""


def plan(console: Console, options: PlanOptions) -> None:
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
    if options.recipe is None:
        raise UsageError("laura plan needs a RECIPE, or --table PARAMETERS for the paper's")
    from laura.api import resolve_recipe
    from laura.recipe.sections import Recipe

    chosen = resolve_recipe(
        options.recipe,
        overrides=options.overrides,
        setting=options.setting,
        data_dir=options.data_dir,
    )
    from laura.study.plan import plan as make_plan
    from laura.study.plan_series import plan_series
    from laura.study.plan_text import plan_text, series_text

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
    from laura.study.plan_paper import paper_rows
    from laura.study.plan_text import paper_text

    value = {"parameters": parameters, "share": share, "devices": devices}
    value["rows"] = paper_rows(parameters, devices, share)
    console.answer(value, paper_text(parameters, devices, share))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    from laura.study.plan import check_gpus

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
    if not 1 <= len(numbers) <= 2 or not 1 <= numbers[0] <= MOST_PARAMETERS or not 0 < share <= 1:
        raise UsageError(
            f"--table wants parameters from 1 to 1e15, and a share in (0, 1], as in "
            f"--table 7e9,0.01; came {text}"
        )
    return numbers[0], share
