"""LoRA runs that differ in the learning rate, by one way of training them all.

`apart` trains one after another, `cohort` as the device would have it, `shared` has the runs
share their passes on every device. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from laura_train import plan_of


def train_all(options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """Train every rate for the same steps; loading and writing weights are not timed."""
    from laura.models.device import peak_memory_bytes
    from laura.recipe.sections import BaseSection, LoraArm, TrainSection
    from laura.results.store import RunStore
    from laura.study.workbench import Workbench
    from laura.training import cohort
    from laura.training.run import train_runs

    if options.way == "shared":
        cohort.gains_from_larger_passes = lambda device: True
    section = TrainSection(
        schedule="constant",
        warmup=0.0,
        batch_tokens=work["tokens_per_step"],
        row_tokens=options.row_tokens,
        rows_per_pass=options.rows_per_pass,
        precision=options.precision,
    )
    arm = LoraArm(method="lora", rank=work["rank"], targets=work["targets"])
    bench = Workbench(BaseSection(model=work["model"]), device=options.device)
    loaded = peak_memory_bytes(bench.base.model.device)

    def train(folder: Path, rates: list[float], steps: int) -> list[RunStore]:
        runs = [RunStore(folder / str(rate)) for rate in rates]
        with bench.adapted(arm, seed=0) as adapted:
            states = train_runs(
                adapted.model,
                list(zip(runs, rates, strict=True)),
                section,
                plan_of(work, options.row_tokens, steps),
                seed=0,
                write_weights=lambda _: None,
            )
        if set(states) != {"done"}:
            raise RuntimeError(f"the benchmark's trainings ended as {states}")
        return runs

    groups = [[rate] for rate in options.rates] if options.way == "apart" else [options.rates]
    with tempfile.TemporaryDirectory() as place:
        train(Path(place) / "warm-up", groups[0], 1)
        started, cores = time.perf_counter(), time.process_time()
        runs = [run for rates in groups for run in train(Path(place), rates, options.steps)]
        seconds, core_seconds = time.perf_counter() - started, time.process_time() - cores
        rows = [run.metrics() for run in runs]
    return {
        "seconds": seconds,
        "core_seconds": core_seconds,
        "step_seconds": sum(row["seconds"] for metrics in rows for row in metrics),
        "tokens": sum(metrics[-1]["tokens"] for metrics in rows),
        "losses": [[row["loss"] for row in metrics] for metrics in rows],
        "loaded_memory_bytes": loaded,
        "peak_memory_bytes": max(row["peak_memory_bytes"] for m in rows for row in m),
    }


def main() -> None:
    """Read the work, train, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--way", choices=("apart", "cohort", "shared"), required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--rows-per-pass", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--device")
    options = parser.parse_args()
    work = json.loads(Path(options.work).read_text())
    Path(options.output).write_text(json.dumps(train_all(options, work)))


if __name__ == "__main__":
    main()
