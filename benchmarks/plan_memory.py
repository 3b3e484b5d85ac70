"""Peak memory as `laura plan` predicts it, beside what training takes.

    python benchmarks/plan_memory.py                    every case, some minutes
    python benchmarks/plan_memory.py --cases 9,12 --json plan_memory.json

SmolLM2-135M, full and LoRA of rank 8, 64 and 256, in both precisions and several batch sizes
(rank 256 on the MLP, since keys of 192 outputs cannot have it), and some variants of arms. Each
training is a process of its own, one after another; the runtime is measured once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sides import start

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, installed or not

MODEL = "smollm2-135m-instruct-q4"
DOCUMENT = 256


@dataclass(frozen=True)
class Case:
    """One training: rank (0 is full), precision, size of a pass, passes of a step."""

    rank: int
    precision: str
    row_tokens: int
    rows_per_pass: int
    passes: int = 1
    optimiser: str = "adamw"
    targets: str = "all"
    more: str = "{}"
    recompute: bool = False
    quantised: bool = False

    @property
    def title(self) -> str:
        """Its line in the table."""
        arm = f"LoRA r={self.rank} {self.targets}" if self.rank else "full"
        for key, value in json.loads(self.more).items():
            arm += f" {key}={value}"
        arm += ", recomputed" * self.recompute + ", nf4" * self.quantised
        more = f" x {self.passes}" if self.passes > 1 else ""
        return (
            f"{arm}, {self.precision}, {self.optimiser}, "
            f"{self.rows_per_pass} x {self.row_tokens} tokens{more}"
        )


CASES = [
    Case(0, "bf16", 256, 1),
    Case(8, "bf16", 256, 1),
    Case(64, "bf16", 512, 2),
    Case(256, "bf16", 512, 1, passes=2, targets="mlp"),
    Case(0, "bf16", 512, 2, passes=2),
    Case(0, "bf16", 256, 1, optimiser="lion"),
    Case(8, "fp32", 256, 2),
    Case(64, "fp32", 512, 1),
    Case(256, "fp32", 512, 1, targets="mlp"),
    Case(0, "fp32", 512, 1, passes=2),
    Case(8, "bf16", 1024, 2),
    Case(8, "fp32", 1024, 2),
    Case(0, "bf16", 1024, 2, passes=2),
    Case(0, "fp32", 1024, 2, passes=2),
    Case(64, "bf16", 512, 2, more='{"dora": true}'),
    Case(64, "fp32", 512, 1, more='{"init": "pissa"}'),
    Case(0, "bf16", 512, 2, more='{"weight_decay": 0.01, "weight_decay_toward": "base"}'),
    Case(0, "bf16", 512, 2, more='{"layers": [25, 26, 27, 28, 29]}'),
    Case(8, "bf16", 512, 2, more='{"layers": [25, 26, 27, 28, 29]}'),
    Case(0, "fp32", 256, 2, more='{"attention_dropout": 0.1, "residual_dropout": 0.1}'),
    Case(64, "bf16", 512, 2, quantised=True),
    Case(64, "bf16", 512, 2, recompute=True),
    Case(0, "bf16", 512, 2, passes=2, recompute=True),
    Case(8, "fp32", 1024, 2, recompute=True),
    Case(64, "bf16", 512, 2, more='{"penalty": "kl"}'),
    Case(0, "bf16", 512, 2, more='{"penalty": "kl", "average": "ema"}'),
]


def predicted(case: Case, runtime: int) -> dict[str, int]:
    """Bytes of each part, as the plan counts them."""
    from workers.plan_memory import arm_of

    from laura.recipe.sections import BaseSection
    from laura.study.plan.machine import Machine
    from laura.study.plan.memory import Pass, training_parts
    from laura.study.plan.shapes import shapes_of

    arm = arm_of(case.rank, case.targets, json.loads(case.more))
    tokens = case.row_tokens * case.rows_per_pass
    one = Pass(
        tokens,
        tokens // 2,  # the worker's rows learn the second half of each document
        4,
        {"fp32": 4, "bf16": 2}[case.precision],
        packed=tokens > DOCUMENT,
        more=case.passes > 1,
        document=min(DOCUMENT, case.row_tokens),
        recompute=case.recompute,
        quantised=case.quantised,
    )
    shapes = shapes_of(BaseSection(model=MODEL))
    return training_parts(shapes, arm, case.optimiser, one, Machine("cpu", 0, runtime))


def measured(case: Case, scratch: Path, threads: int, seconds: float) -> dict[str, Any]:
    """What training it took, or {"failed": reason}."""
    program = [sys.executable, str(HERE / "workers" / "plan_memory.py"), "--device", "cpu"]
    program += ["--document", str(DOCUMENT)]
    for name, value in asdict(case).items():
        program += [f"--{name.replace('_', '-')}", str(value)]
    return start(
        program, scratch / "result.json", threads=threads, folders=(ROOT,),
        seconds=seconds,
    )  # fmt: skip


def compare(
    case: Case, runtime: int, scratch: Path, threads: int = 1, seconds: float = 900.0
) -> dict[str, Any]:
    """Predicted and measured peak in bytes, and their ratio."""
    parts, found = predicted(case, runtime), measured(case, scratch, threads, seconds)
    if "failed" in found:
        return {"case": case.title, "predicted": parts["peak"], **found}
    peak = found["peak_memory_bytes"]
    return {
        "case": case.title,
        "predicted": parts["peak"],
        "measured": peak,
        "ratio": parts["peak"] / peak,
        "parts": parts,
        "seconds": found["seconds"],
        "flops": found["flops"],
    }


def main() -> int:
    """Run the cases, print the table; 1 if any is off by more than a tenth."""
    from laura.recipe.sections import BaseSection
    from laura.study.plan.machine import measure_machine
    from laura.study.plan.shapes import shapes_of

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", metavar="N,N,...", help="only these, counted from 0")
    parser.add_argument("--seconds", type=float, default=900.0, help="most time of one training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args()
    chosen = [CASES[int(n)] for n in options.cases.split(",")] if options.cases else CASES
    machine = measure_machine(shapes_of(BaseSection(model=MODEL)), "cpu", "bf16")
    say(f"runtime {machine.runtime / 1e6:.0f} MB, {machine.flops_per_second:.3g} operations/s")
    say(f"{'case':<46} {'predicted':>10} {'measured':>10} {'ratio':>6}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in chosen:
            rows.append(
                compare(case, machine.runtime, Path(scratch), options.threads, options.seconds)
            )
            row = rows[-1]
            if "failed" in row:
                say(f"{row['case']:<46} failed: {row['failed']}")
                continue
            predicted, measured = row["predicted"] / 1e6, row["measured"] / 1e6
            say(f"{row['case']:<46} {predicted:>7.0f} MB {measured:>7.0f} MB {row['ratio']:>6.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any("failed" in row or abs(row["ratio"] - 1) > 0.1 for row in rows))


def say(text: str) -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
