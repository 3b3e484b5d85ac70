"""Many learning rates at once: LoRA runs in lock-step, and a small sweep by worker processes.

    python benchmarks/cohort.py                      both, about 15 minutes on two cores
    python benchmarks/cohort.py --quick              tiny work, to see that it runs
    python benchmarks/cohort.py --only lockstep --steps 10 --device cuda

What is measured and what is not: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides import start
from train import Runner

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RATES = [1e-4, 1.5e-4, 2e-4, 3e-4, 4e-4, 6e-4, 8e-4, 1e-3]
LEAST_FROM_TWO_WORKERS = 1.6
TIME_LIMIT_SECONDS = 3600
WORDS = {
    "apart": "one after another",
    "cohort": "in lock-step",
    "shared": "in lock-step, shared passes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where a side failed or the losses differ."""
    options = read_options(arguments)
    record: dict[str, Any] = {"threads": options.threads}
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        if options.only != "sweep":
            record["lockstep"] = rounds = lockstep(options, Path(scratch))
            good = tell_lockstep(rounds, options)
        if options.only != "lockstep":
            record["sweep"] = sweep(options, Path(scratch))
            good = tell_sweep(record["sweep"]) and good
    if options.output:
        Path(options.output).write_text(json.dumps(record, indent=1) + "\n")
    return 0 if good else 1


def lockstep(options: argparse.Namespace, scratch: Path) -> list[dict[str, dict[str, Any]]]:
    """Every way of training all rates, in turns, each in a process of its own."""
    runner = Runner(options, scratch)
    facts = runner.prepare_work()
    rates = RATES[: options.runs]
    say(f"{len(rates)} LoRA runs of {options.steps} steps of about {facts['mean_tokens']:.0f} "
        f"tokens, rank {facts['rank']}, {options.threads} threads")  # fmt: skip
    rounds = []
    for turn in range(options.rounds):
        found = {}
        for way in options.ways:
            program = [
                sys.executable, str(HERE / "workers" / "laura_cohort.py"), "--way", way,
                "--work", str(runner.work_file), "--steps", str(options.steps),
                "--rows-per-pass", str(options.rows_per_pass), "--precision", options.precision,
                "--rates", *map(str, rates),
                *(["--device", options.device] if options.device else []),
            ]  # fmt: skip
            found[way] = start(
                program, runner.result_file, threads=options.threads, folders=(ROOT,),
                seconds=TIME_LIMIT_SECONDS,
            )  # fmt: skip
            if "failed" in found[way]:
                say(f"  {WORDS[way]} failed: {found[way]['failed']}")
            else:
                say(f"  round {turn + 1}, {WORDS[way]}: {found[way]['seconds']:.1f} s")
        rounds.append(found)
    return rounds


def tell_lockstep(rounds: list[dict[str, dict[str, Any]]], options: argparse.Namespace) -> bool:
    """Print time, memory and agreement; whether all sides ran and agree."""
    if any("failed" in side for found in rounds for side in found.values()):
        return False
    say(f"\n{'':<28}{'seconds':>9}{'ratio':>8}{'by cpu':>8}{'steps':>9}{'tokens/s':>10}"
        f"{'peak MiB':>10}{'losses':>10}")  # fmt: skip
    agree = True
    for way in options.ways:
        sides = [(found["apart"], found[way]) for found in rounds]
        seconds = statistics.median(side["seconds"] for _, side in sides)
        ratio = statistics.median(apart["seconds"] / side["seconds"] for apart, side in sides)
        cores = statistics.median(
            apart["core_seconds"] / side["core_seconds"] for apart, side in sides
        )
        peak = max(side["peak_memory_bytes"] for _, side in sides) / 2**20
        distance = max(apart_from(apart["losses"], side["losses"]) for apart, side in sides)
        agree = agree and distance <= options.tolerance
        steps = statistics.median(side["step_seconds"] for _, side in sides)
        speed = sides[0][1]["tokens"] / steps
        say(f"{WORDS[way]:<28}{seconds:>9.1f}{ratio:>7.2f}x{cores:>7.2f}x{steps:>9.1f}{speed:>10.0f}"
            f"{peak:>10.0f}{distance:>10.0e}")  # fmt: skip
    loaded = rounds[0]["apart"]["loaded_memory_bytes"] / 2**20
    say(f"the base alone holds {loaded:.0f} MiB; losses: largest difference in nats, every step")
    if not agree:
        say(f"the losses DIFFER by more than {options.tolerance:g} nats")
    return agree


def apart_from(one: list[list[float]], other: list[list[float]]) -> float:
    """Largest difference between two tables."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def sweep(options: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    """Seconds of the same comparison by one worker and by two, in turns."""
    rounds = []
    for turn in range(options.rounds):
        found = {}
        for workers in (1, 2):
            study = scratch / f"sweep-{turn}-{workers}"
            command = [
                sys.executable, "-m", "laura", "compare", options.recipe, "--out", str(study),
                "--workers", str(workers), *(f"--set={change}" for change in options.changes),
            ]  # fmt: skip
            environment = os.environ | {
                "OMP_NUM_THREADS": str(options.threads),
                "PYTHONPATH": str(ROOT),
            }
            started = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            found[str(workers)] = time.perf_counter() - started
            say(f"  round {turn + 1}, {options.recipe} by {workers} worker(s): "
                f"{found[str(workers)]:.0f} s")  # fmt: skip
        rounds.append(found)
    return rounds


def tell_sweep(rounds: list[dict[str, float]]) -> bool:
    """Print the ratio; it is a goal, not a condition."""
    ratio = statistics.median(found["1"] / found["2"] for found in rounds)
    reached = "reached" if ratio >= LEAST_FROM_TWO_WORKERS else "not reached"
    say(f"two workers are {ratio:.2f}x one (goal {LEAST_FROM_TWO_WORKERS}x, {reached})")
    return True


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    beside = ROOT.parent / "shared" / "data"
    data = os.environ.get("LAURA_DATA") or (str(beside) if beside.is_dir() else None)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=("lockstep", "sweep"))
    add("--rounds", type=int, default=1, help="turns (default 1)")
    add("--steps", type=int, default=4, help="timed steps of every run (default 4)")
    add("--runs", type=int, default=len(RATES), help="learning rates (default 8, the most)")
    add("--ways", nargs="+", choices=tuple(WORDS), default=["apart", "cohort", "shared"])
    add("--rows-per-pass", type=int, default=2, help="rows of each run (default 2)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    add("--device", help="cpu, cuda, ...; the best there is when left out")
    add("--tolerance", type=float, default=0.02, help="nats that losses may differ by")
    add("--recipe", default="micro", help="of the sweep (default micro)")
    add("--changes", nargs="*", default=["seeds=[0]", "budget.tokens=[120000]"],
        help="--set of the sweep")  # fmt: skip
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores by default")
    add("--data-dir", type=Path, default=Path(data) if data else None)
    add("--json", dest="output", help="also write everything measured to this JSON file")
    add("--quick", action="store_true", help="two runs of one step, and micro-small")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.runs = 1, 2
        options.recipe, options.changes = "micro-small", ["seeds=[0]"]
    if not 2 <= options.runs <= len(RATES) or min(options.rounds, options.steps) < 1:
        parser.error(f"--runs must be 2 to {len(RATES)}, --rounds and --steps at least 1")
    if "apart" not in options.ways:
        options.ways = ["apart", *options.ways]
    options.warmup = 0  # prepare_work counts them among its steps
    return options


def say(text: str) -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
