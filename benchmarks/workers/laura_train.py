"""One training of Laura, timed step by step; the twin of `peers/trl_train.py`.

Uses the library as a program of a user would: a base from `Workbench`, rows
from `arrange`, `train_runs`. The work, token ids and labels grouped into steps,
comes from a file that the peer reads too. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RATE_SHAPE = (1800, 576, 1536)
RATE_REPEATS = 30


class StepClock:
    """A `Progress` that notes when each step ends; the loop advances its bar once a step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.core_ends: list[float] = []

    def advance(self, amount: float = 1.0) -> None:
        """Note the time; advancing by nothing is only the loop's greeting."""
        if amount > 0:
            self.ends.append(time.perf_counter())
            self.core_ends.append(time.process_time())

    def note(self, text: str) -> None:
        """Ignore remarks."""

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[StepClock]:
        """Be the bar itself."""
        yield self

    def say(self, text: str) -> None:
        """Ignore lines."""


def laura_worker(options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """Train and time; seconds are from the end of one step to the end of the next.

    Every step holds the work's examples of that step, packed into rows; as many
    of them as the recipe's default says go through the model together, and all
    make one optimiser step.
    """
    import torch

    from laura.models.device import peak_memory_bytes
    from laura.recipe.sections import BaseSection, FullArm, LoraArm, TrainSection
    from laura.results.store import RunStore
    from laura.study.workbench import Workbench
    from laura.training.run import train_runs

    rate = work["learning_rate"][options.method]
    section = TrainSection(
        schedule="constant",
        warmup=0.0,
        batch_tokens=work["tokens_per_step"],
        row_tokens=options.row_tokens,
        precision=options.precision,
    )
    arm: LoraArm | FullArm = FullArm(method="full")
    if options.method == "lora":
        arm = LoraArm(method="lora", rank=work["rank"], targets=work["targets"])
    plan = plan_of(work, section.row_tokens, options.warmup + options.steps)
    bench = Workbench(BaseSection(model=work["model"]), device="cpu")
    clock = StepClock()
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, bench.adapted(arm, seed=0) as adapted:
        loaded = peak_memory_bytes(cpu)  # train_runs starts counting anew
        run = RunStore(Path(folder))
        (state,) = train_runs(
            adapted.model, [(run, rate)], section, plan, seed=0,
            write_weights=lambda _: None, progress=clock,
        )  # fmt: skip
        metrics = run.metrics()
    if state != "done":
        raise RuntimeError(f"the benchmark's training ended as {state}")
    first, ends, core_ends = max(options.warmup, 1), clock.ends, clock.core_ends
    return {
        "seconds": [ends[at] - ends[at - 1] for at in range(first, len(ends))],
        "core_seconds": [core_ends[at] - core_ends[at - 1] for at in range(first, len(ends))],
        "tokens": [sum(len(row.token_ids) for row in batch) for batch in plan.batches[first:]],
        "losses": [row["loss"] for row in metrics],
        # Up to the last step, like the peer's; writing the weights is not training.
        "peak_memory_bytes": max(loaded, int(metrics[-1]["peak_memory_bytes"])),
        "loaded_memory_bytes": loaded,
        "trainable_parameters": adapted.trainable_parameters,
    }


def plan_of(work: dict[str, Any], row_tokens: int, count: int) -> Any:
    """The work's first steps as a `BatchPlan`, the examples of each packed into rows."""
    from laura.data.packing import Row, arrange, fit
    from laura.data.templates import Encoded
    from laura.training.batches import BatchPlan

    def rows_of(number: int, step: list[dict[str, list[int]]]) -> list[Row]:
        encoded = [
            Encoded(index, row["input_ids"], [label >= 0 for label in row["labels"]], 0)
            for index, row in enumerate(step)
        ]
        fitted = fit(encoded, row_tokens)
        rows = arrange(fitted.lengths, row_tokens, number)
        return [fitted.row(encoded, documents) for documents in rows]

    steps = work["steps"][:count]
    return BatchPlan.of([rows_of(*step) for step in enumerate(steps)], [len(steps)])


def matrix_rate() -> dict[str, float]:
    """The machine's matrix products at a shape of the model, in GFLOP/s by precision.

    The median of several products of (1800 x 576) by (576 x 1536), the MLP's.
    """
    import torch

    tokens, inner, outer = RATE_SHAPE
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(tokens, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        seconds = []
        for _ in range(RATE_REPEATS):
            started = time.perf_counter()
            torch.nn.functional.linear(left, right)
            seconds.append(time.perf_counter() - started)
        rates[name] = 2 * tokens * inner * outer / statistics.median(seconds) / 1e9
    return rates


def main() -> None:
    """Read the work, train (or measure the machine), write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--rate", action="store_true", help="measure the machine only")
    parser.add_argument("--work")
    parser.add_argument("--method", choices=("lora", "full"))
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    if options.rate:
        result: dict[str, Any] = matrix_rate()
    else:
        result = laura_worker(options, json.loads(Path(options.work).read_text()))
    Path(options.output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
