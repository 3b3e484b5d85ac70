"""What every side of `serving.py` does alike, whatever answers; standard library only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prompts = list[list[int]]


@dataclass(frozen=True)
class Way:
    """How the prompts are answered.

    Attributes:
        precision: fp32 or bf16.
        mixed: Whether the adapters answer, or the base.
        drafts: Whether tokens are drafted ahead, where a side can.
    """

    precision: str
    mixed: bool
    drafts: bool


def carry_out(answer: Callable[[dict[str, Any], Way], dict[str, Any]]) -> None:
    """Read the command line, do the work, write the result.

    Args:
        answer: Given what `serving.py` wrote, and the way; gives the result.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--drafts", action="store_true")
    options = parser.parse_args()
    work = json.loads(Path(options.work).read_text())
    result = answer(work, Way(options.precision, options.mixed, options.drafts))
    Path(options.output).write_text(json.dumps(result))


def every_load(
    prompts: dict[str, list[Prompts]], together: Callable[[Prompts], dict[str, Any]]
) -> dict[str, Any]:
    """What each load took, run by run; its first run is for warming up.

    Args:
        prompts: Runs of each load.
        together: Has the prompts of one run answered at once.
    """
    result: dict[str, Any] = {}
    for load, runs in prompts.items():
        together(runs[0])
        result[load] = [together(one) for one in runs[1:]]
    return result
