"""The command that looks into the weights: `laura spectra`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laura.cli.console import opened
from laura.cli.options import DeviceOption, JsonOption


def spectra(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Registry name, folder, GGUF file or Hub id.")
    ],
    tuned: Annotated[
        str,
        typer.Argument(
            metavar="TUNED", help="What was made of it: a model, or the folder of an adapter."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="JSON file for the result.")
    ] = Path("spectra.json"),
    intruders: Annotated[
        bool, typer.Option("--intruders", help="Also count intruder dimensions; takes longer.")
    ] = False,
    k: Annotated[
        int, typer.Option("--k", metavar="N", min=1, help="Leading directions looked at for them.")
    ] = 10,
    eps: Annotated[
        float,
        typer.Option(
            "--eps", metavar="X", min=0.0, max=1.0, help="Less alike than this is an intruder."
        ),
    ] = 0.5,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--values",
            metavar="NAME",
            help="Keep all singular values of this matrix, for a curve. Repeatable.",
        ),
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Rank and spectrum of every update.

    Compares each matrix of the decoder's layers with its base: how many directions hold
    50, 90 and 99 % of the update, how many pure noise would need, and its norms. Reads
    one matrix at a time, so a 7B model needs little memory. Stopped, the same command
    continues.

    \b
    Example:
      laura spectra smollm2-135m-instruct-q4 studies/demo/runs/ID/checkpoints/STEP
      laura spectra llama-2-7b tuned --values model.layers.26.self_attn.q_proj
    """
    with opened(json) as desk:
        from laura.analysis.comparison import compare_weights
        from laura.analysis.measuring import Wanted
        from laura.report.tables import spectra_tables

        wanted = Wanted(intruders, k, eps, tuple(values or ()))
        progress = desk.progress
        answer = compare_weights(
            base, tuned, out=out, wanted=wanted, device=device, progress=progress
        )
        progress.say(f"Everything is in {out}")
        desk.answer(answer, None if json else spectra_tables(answer))
