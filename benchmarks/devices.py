"""One run over several processes of one thread each, beside one process of one thread.

    python benchmarks/devices.py                                 SmolLM2-135M, two processes
    python benchmarks/devices.py --base micro --row-tokens 256   a tiny base
    python benchmarks/devices.py --device cuda --devices 8       one process a GPU

What is measured and what is not: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from laura.data.packing import IGNORED, Row
from laura.recipe.sections import BaseSection, FullArm, LoraArm, TrainSection
from laura.results.store import RunStore
from laura.study.ranks import ranks
from laura.study.workbench import Workbench
from laura.training.batches import BatchPlan
from laura.training.run import train_runs

ARMS = {"full": FullArm(method="full"), "lora": LoraArm(method="lora", rank=16)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each way in turns and print tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m-instruct-q4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--passes", type=int, default=4, help="of a step, of one row each")
    parser.add_argument("--steps", type=int, default=4, help="the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Workbench(BaseSection(model=options.base), options.device)
    for arm in options.arms:
        for turn in range(options.rounds):
            one, several = (measure(bench, arm, n, options) for n in (1, options.devices))
            apart = max(abs(a - b) for a, b in zip(one[1], several[1], strict=True))
            print(
                f"{arm}, round {turn + 1}: {one[0]:,.0f} tokens/s by 1, {several[0]:,.0f} by "
                f"{options.devices}, {several[0] / one[0]:.2f} times; losses differ by {apart:.1e}",
                flush=True,
            )


def measure(
    bench: Workbench, name: str, devices: int, options: argparse.Namespace
) -> tuple[float, list[float]]:
    """Tokens a second after the first step, and the losses."""
    row, arm = options.row_tokens, ARMS[name]
    section = TrainSection(
        batch_tokens=options.passes * row, row_tokens=row, rows_per_pass=1, devices=devices,
        schedule="constant", warmup=0.0,
    )  # fmt: skip
    source = random.Random(0)
    vocabulary = bench.base.model.config.vocab_size

    def one_row() -> Row:
        ids = [source.randrange(vocabulary) for _ in range(row)]
        return Row(ids, [*ids[1:], IGNORED], list(range(row)), [row], [0])

    steps = [[one_row() for _ in range(options.passes)] for _ in range(options.steps)]
    plan: Any = BatchPlan.of(steps, [options.steps])
    with (
        tempfile.TemporaryDirectory() as folder,
        ranks(bench, arm, 0, section, 1e-5),
        bench.adapted(arm, 0, devices) as adapted,
    ):
        run = RunStore(Path(folder))
        train_runs(
            adapted.model, [(run, 1e-5)], section, plan,
            rule=adapted.rule, seed=0, write_weights=lambda _: None,
        )  # fmt: skip
        rows = run.metrics()
    seconds = sum(one["seconds"] for one in rows[1:])
    return (options.steps - 1) * options.passes * row / seconds, [one["loss"] for one in rows]


if __name__ == "__main__":
    sys.exit(main())
