"""What a remedy costs: optimiser steps with and without it, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/remedies.py                       some minutes
    python benchmarks/remedies.py --methods lora --arms plain kl --rounds 5 --row-tokens 128

Every arm trains the same model on the same rows of random tokens, half of each learnt. Medians
of single steps, and their ratio to the plain arm's; on a processor, where other work may run
beside it, in processor time. The exit code is 1 where a goal is missed:
1.03 for a token weight, 1.45 for LoRA with a divergence. What was seen: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dft": {"token_weight": "dft"},
    "eaft": {"token_weight": "eaft"},
    "talr": {"token_weight": "talr"},
    "stm": {"token_weight": "stm"},
    "kl": {"penalty": "kl"},
    "kl_reverse": {"penalty": "kl_reverse"},
    "clora": {"penalty": "clora"},
    "ema": {"average": "ema"},
}
FULL = ("plain", "dft", "talr", "kl")  # each has moments of its own, of all weights
GOALS = {(method, name): 1.03 for method in ("lora", "full") for name in ("dft", "eaft", "talr")}
GOALS |= {("lora", "kl"): 1.45, ("lora", "kl_reverse"): 1.45}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 1 where a goal is missed."""
    options = read_options(arguments)
    missed = False
    print("| method | arm | median s | ratio | goal |\n|---|---|---|---|---|")
    for method in options.methods:
        seconds = measure(method, options)
        plain = statistics.median(seconds["plain"])
        for name, found in seconds.items():
            ratio, goal = statistics.median(found) / plain, GOALS.get((method, name))
            missed |= goal is not None and ratio > goal
            print(f"| {method} | {name} | {ratio * plain:.3f} | {ratio:.3f} | {goal or ''} |")
    return int(missed)


def measure(method: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every step of each arm; the first round is not counted."""
    from laura.models.device import resolve_precision
    from laura.models.lean import lean
    from laura.recipe.sections import BaseSection, TrainSection
    from laura.study.workbench import Workbench
    from laura.training.batches import BatchPlan
    from laura.training.learner import Learner
    from laura.training.optimisers import STANDARD
    from laura.training.remedies import beside_base, objective_of, rule_of

    known = FULL if method == "full" else ARMS
    arms = {name: arm_of(method, name) for name in known if name in {"plain", *options.arms}}
    section = TrainSection(precision=options.precision, rows_per_pass=options.rows)
    bench = Workbench(BaseSection(model=options.model), options.device)
    with bench.adapted(arms["plain"], seed=0) as adapted:
        model, dtype = adapted.model, resolve_precision(section.precision, adapted.model.device)
        batch = [
            random_row(options.row_tokens, model.config.vocab_size) for _ in range(options.rows)
        ]
        plan = BatchPlan.of([batch], [1])
        ways = {
            name: (rule_of(arm, STANDARD), beside_base(objective_of(arm), model, plan, dtype))
            for name, arm in arms.items()
        }
        found: dict[str, list[float]] = {name: [] for name in arms}
        clock = time.process_time if model.device.type == "cpu" else time.perf_counter
        with lean(model):
            learners = {name: Learner(model, section, 1e-5, *way) for name, way in ways.items()}
            model.train()
            for turn in range(options.rounds + 1):
                for name, learner in learners.items():
                    started = clock()
                    learner.gradients(batch, plan.supervised[1])
                    learner.clip()
                    learner.step(1e-5)
                    if turn:
                        found[name].append(clock() - started)
    return found


def arm_of(method: str, name: str) -> Any:
    """An arm with one remedy."""
    from laura.recipe.sections import FullArm, LoraArm

    kind = LoraArm if method == "lora" else FullArm
    return kind.model_validate({"method": method, **ARMS[name]})


def random_row(tokens: int, vocabulary: int) -> Any:
    """A row of one document whose second half is learnt."""
    from laura.data.packing import IGNORED, Row

    ids = [random.randrange(vocabulary) for _ in range(tokens)]
    learnt = [IGNORED] * (tokens // 2) + ids[tokens // 2 + 1 :] + [IGNORED]
    return Row(ids, learnt, list(range(tokens)), [tokens], [0])


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="smollm2-135m-instruct-q4")
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--row-tokens", type=int, default=512)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
