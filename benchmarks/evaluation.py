"""Evaluation speed: Laura beside lm-eval, transformers and PEFT, in turns in one run.

    python benchmarks/evaluation.py                         everything, about a quarter of an hour
    python benchmarks/evaluation.py --quick                 a first look at tiny work
    python benchmarks/evaluation.py --only choice,sandbox --rounds 3

Both sides get the same texts from the same file and must give the same log-likelihoods
(to 1e-3 nats) and the same greedy answers. Each side is a process of its own. The
peer's best batch size is looked for first, in this run. What is measured and what is
not: benchmarks/README.md. Ends with 1 when the sides disagree or one did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, installed or not
os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

from evaluation_tables import Part, SandboxPart, table  # noqa: E402
from evaluation_work import CHOICE_TASKS, QUICK, Maker, Sizes  # noqa: E402
from sides import start  # noqa: E402

MODEL = "smollm2-135m-instruct-q4"
PARTS = ("choice", "gsm8k", "humaneval", "adapters", "sandbox")
BATCH_SIZES = "1,4,8,16"
TIME_LIMIT_SECONDS = 1800
SANDBOX_WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; what the user can mend ends in one line and exit code 2."""
    from laura.models.load import resolve_model
    from laura.results.errors import LauraError

    options = read_options(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            maker = Maker(
                resolve_model(options.model), options.data_dir, options.sizes, Path(scratch)
            )
            parts = compare(options, maker, Runner(options, Path(scratch)))
    except LauraError as error:
        say(f"the benchmark cannot run: {error}")
        return 2
    whole = options.sizes == Sizes() and options.model == MODEL
    say("\n" + table(parts, options.threads, whole))
    if options.json:
        records = {
            "model": options.model, "threads": options.threads, "rounds": options.rounds,
            "sizes": vars(options.sizes), "parts": [part.record() for part in parts],
        }  # fmt: skip
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    return 0 if all(part.agrees for part in parts) else 1


def compare(options: argparse.Namespace, maker: Maker, runner: Runner) -> list[Part | SandboxPart]:
    """Run every part that was asked for, one after the other."""
    parts: list[Part | SandboxPart] = []
    for plan in plans(options.only, maker):
        say(f"{plan.title}: making the work")
        work = plan.make()
        part = Part(plan.title, plan.items, plan.goal, len(work["adapters"]) or 1)
        for turn in range(options.rounds):
            part.laura.append(runner.laura(work))
            say(f"  round {turn + 1}, Laura: {part.last_line('laura')}")
            part.peer.append(runner.peer(work, part.sizes))
            say(f"  round {turn + 1}, {work['way']}: {part.last_line('peer')}")
        parts.append(part)
    if "sandbox" in options.only:
        say("sandbox: HumanEval's own solutions")
        parts.append(SandboxPart(runner.sandbox()))
    return parts


@dataclass(frozen=True)
class Plan:
    """A part before it is run: its line, how much it is, what Laura should reach, its work."""

    title: str
    items: str
    goal: float
    make: Callable[[], dict[str, Any]]


def plans(only: Sequence[str], maker: Maker) -> list[Plan]:
    """The parts asked for that have a peer."""
    sizes = maker.sizes
    found = []
    if "choice" in only:
        for name in CHOICE_TASKS:
            items = f"{sizes.limit} items"
            found.append(Plan(name, items, 3.0, lambda name=name: maker.choice(name)))
    if "gsm8k" in only:
        items = f"{sizes.gsm8k_items} x {sizes.gsm8k_tokens} tokens"
        found.append(Plan("gsm8k, 5-shot", items, 3.0, maker.gsm8k))
    if "humaneval" in only:
        items = f"{sizes.code_items} x {sizes.code_samples} x {sizes.code_tokens} tokens"
        found.append(Plan("humaneval", items, 2.0, maker.humaneval))
    if "adapters" in only:
        items = f"{sizes.adapters} x ({sizes.adapter_items} + {sizes.adapter_answers} items)"
        found.append(Plan(f"{sizes.adapters} adapters", items, 2.0, maker.adapters))
    return found


class Runner:
    """Starts the processes that are measured.

    Args:
        options: The command line.
        scratch: Folder for work and results.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.work_file = scratch / "work.json"
        self.result_file = scratch / "result.json"

    def laura(self, work: dict[str, Any]) -> dict[str, Any]:
        """Do the work once; the result, or `{"failed": reason}`."""
        self.work_file.write_text(json.dumps(work))
        return self._start(HERE / "workers" / "laura_evaluate.py", "--work", str(self.work_file))

    def peer(self, work: dict[str, Any], sizes: dict[str, Any] | None) -> dict[str, Any]:
        """The same by the peer, at batch sizes found in an earlier round, or to be found."""
        self.work_file.write_text(json.dumps(work))
        told = ["--work", str(self.work_file), "--batch-sizes", self.options.batch_sizes]
        told += ["--chosen", json.dumps(sizes)] if sizes else []
        return self._start(HERE / "peers" / "lm_eval_evaluate.py", *told)

    def sandbox(self) -> dict[str, Any]:
        """Programs per second, from `sandbox.py`."""
        told = ["--workers", str(SANDBOX_WORKERS), "--repeats", str(self.options.repeats)]
        if self.options.data_dir:
            told += ["--data-dir", str(self.options.data_dir)]
        return self._start(HERE / "sandbox.py", *told)

    def _start(self, program: Path, *arguments: str) -> dict[str, Any]:
        return start(
            [sys.executable, str(program), *arguments],
            self.result_file,
            threads=self.options.threads,
            folders=(ROOT, HERE),
            seconds=TIME_LIMIT_SECONDS,
        )


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    beside = ROOT.parent / "shared" / "data"
    data = os.environ.get("LAURA_DATA") or (str(beside) if beside.is_dir() else None)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=1, help="turns (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="of the sandbox (default 3)")
    parser.add_argument(
        "--batch-sizes", default=BATCH_SIZES, help="the peer's, to choose from, as 1,4,8"
    )
    parser.add_argument("--model", default=MODEL, help="name or folder")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of every process, all cores")
    parser.add_argument("--data-dir", type=Path, default=Path(data) if data else None)
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    parser.add_argument("--quick", action="store_true", help="tiny work, to see that it runs")
    for field in fields(Sizes):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, help=f"default {field.default}")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = sorted(set(options.only) - set(PARTS))
    if unknown:
        parser.error(f"--only does not know {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    sizes = options.batch_sizes.split(",")
    if not all(size.isdigit() and int(size) for size in sizes):
        parser.error(f"--batch-sizes is {options.batch_sizes}; give numbers from 1, as 1,4,8")
    given = {f.name: getattr(options, f.name) for f in fields(Sizes)}
    options.sizes = replace(
        QUICK if options.quick else Sizes(),
        **{name: value for name, value in given.items() if value is not None},
    )
    counts = (options.rounds, options.repeats, options.threads, *vars(options.sizes).values())
    if min(counts) < 1:
        parser.error("--rounds, --repeats, --threads and all sizes must be at least 1")
    return options


def say(text: str) -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
