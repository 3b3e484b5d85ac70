"""Serving speed: many adapters in one batch, Laura beside PEFT, transformers and vLLM.

    python benchmarks/serving.py                         everything, about half an hour
    python benchmarks/serving.py --quick                 tiny work, to see that it runs
    python benchmarks/serving.py --only laura,laura-base --precision fp32
    python benchmarks/serving.py --questions --data-dir DIR   GSM8K's questions as prompts
    LAURA_VLLM_PYTHON=ENV/bin/python python benchmarks/serving.py

All sides get the same prompts and adapters from the same file. Each side is a process of
its own and answers 1, 8 and 32 prompts at once, greedily, a fixed number of new tokens.
What is measured and what is not: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, installed or not

from evaluation_work import write_adapters  # noqa: E402
from sides import start  # noqa: E402

from laura.results.errors import LauraError, UsageError  # noqa: E402

MODEL = "smollm2-135m-instruct-q4"
TIME_LIMIT_SECONDS = 1800
LAURA, GENERATE, VLLM = (
    "workers/laura_serving.py", "peers/peft_serving.py", "peers/vllm_serving.py"
)  # fmt: skip
MIXED, DRAFTS = "--mixed", "--drafts"
# Name: (title, program, its switches).
SIDES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "laura": ("Laura, mixed adapters", LAURA, (MIXED, DRAFTS)),
    "laura-plain": ("Laura, mixed, without drafts", LAURA, (MIXED,)),
    "laura-base": ("Laura, base", LAURA, (DRAFTS,)),
    "laura-base-plain": ("Laura, base, without drafts", LAURA, ()),
    "peft": ("PEFT generate, mixed adapters", GENERATE, (MIXED,)),
    "peft-lookup": ("PEFT generate, prompt lookup", GENERATE, (MIXED, DRAFTS)),
    "transformers": ("transformers generate, base", GENERATE, ()),
    "vllm": ("vLLM, mixed adapters", VLLM, (MIXED,)),
    "vllm-base": ("vLLM, base", VLLM, ()),
}
PEERS = ("peft", "vllm")
# Best of the peers as measured beforehand on two cores of an AMD EPYC, 32 at once.
GOAL_OVER_PEER, GOAL_ALONE, MOST_LOSS_BY_MIXING = 4.0, 3.0, 0.15


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a side failed, 2 where it cannot run."""
    from laura.models.load import resolve_model

    options = read_options(arguments)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            work_file = Path(scratch) / "work.json"
            model = resolve_model(options.model)
            work_file.write_text(json.dumps(made_work(options, model, Path(scratch))))
            for precision in options.precision:
                results[precision] = measure(options, work_file, precision)
    except LauraError as error:
        say(f"the benchmark cannot run: {error}")
        return 2
    for precision, sides in results.items():
        say("\n" + table(precision, sides, options.at_once, not options.quick))
    if options.json:
        record = {"model": options.model, "threads": options.threads, "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    failed = any("failed" in r for sides in results.values() for turns in sides.values()
                 for r in turns)  # fmt: skip
    return 1 if failed else 0


def made_work(options: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """Prompts, all different, and random adapters."""
    count = options.repeats + 1  # the first is for warming up
    if options.questions:
        source = questions(model, options.prompt_tokens, options.data_dir)
    else:
        source = random_tokens(model, options.prompt_tokens)
    prompts = {
        str(load): [[next(source) for _ in range(load)] for _ in range(count)]
        for load in options.at_once
    }
    folders = write_adapters(model, scratch / "adapters", options.adapters)
    return {
        "model": str(model), "adapters": [str(folder) for folder in folders], "prompts": prompts,
        "new_tokens": options.new_tokens,
    }  # fmt: skip


def random_tokens(model: Path, tokens: int) -> Iterator[list[int]]:
    """Prompts that say nothing."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    source = random.Random(0)
    while True:
        yield [source.randrange(100, vocabulary) for _ in range(tokens)]


def questions(model: Path, tokens: int, data_dir: Path | None) -> Iterator[list[int]]:
    """The last tokens of GSM8K's questions, as far as they are long enough, over and over."""
    from transformers import AutoTokenizer

    from laura.data.sources import load_rows

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows = load_rows("gsm8k", "test", data_dir)
    prompts = [tokenizer.encode(f"Question: {row['question']}\nAnswer:") for row in rows]
    long = [ids[-tokens:] for ids in prompts if len(ids) >= tokens]
    if not long:
        raise UsageError(f"--prompt-tokens {tokens}: no question of GSM8K is so long")
    return itertools.cycle(long)


def measure(
    options: argparse.Namespace, work_file: Path, precision: str
) -> dict[str, list[dict[str, Any]]]:
    """Every side in turn, as often as there are rounds."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for turn in range(options.rounds):
        for name in options.only:
            title, program, switches = SIDES[name]
            python = sys.executable
            if name.startswith("vllm"):
                python = os.environ.get("LAURA_VLLM_PYTHON", "")
                if not python:
                    say(f"  {title}: left out, LAURA_VLLM_PYTHON names no environment")
                    continue
            command = [
                python, str(HERE / program), "--work", str(work_file), "--precision", precision,
                *switches,
            ]  # fmt: skip
            result = start(
                command, work_file.with_suffix(".result"), threads=options.threads,
                folders=(ROOT, HERE) if name.startswith("laura") else (HERE,),
                seconds=TIME_LIMIT_SECONDS,
            )  # fmt: skip
            found[name].append(result)
            say(f"  round {turn + 1}, {precision}, {title}: {line(result)}")
    return {name: turns for name, turns in found.items() if turns}


def rate(turns: Sequence[dict[str, Any]], load: int) -> float | None:
    """Output tokens a second with so many prompts at once: the median of all repeats."""
    every = [run["tokens"] / run["seconds"] for turn in turns for run in turn.get(str(load), [])]
    return statistics.median(every) if every else None


def first_token(turns: Sequence[dict[str, Any]], load: int) -> float | None:
    """Median seconds until an answer's first token."""
    every = [one for turn in turns for run in turn.get(str(load), []) for one in run["first"]]
    return statistics.median(every) if every else None


def line(result: dict[str, Any]) -> str:
    """One process's result in words."""
    if "failed" in result:
        return f"did not run ({result['failed'][:150]})"
    loads = [key for key in result if key.isdigit()]
    return ", ".join(f"{load}: {rate([result], int(load)):.0f} tokens/s" for load in loads)


def table(
    precision: str, sides: dict[str, list[dict[str, Any]]], at_once: Sequence[int], whole: bool
) -> str:
    """Rates and times of every side, and the ratios the goals are about."""
    head = f"{precision:<32}" + "".join(f"{f'{load} at once':>20}" for load in at_once)
    lines = [head, f"{'':<32}" + f"{'tokens/s':>10}{'first':>10}" * len(at_once)]
    rates: dict[str, dict[int, float]] = {}
    for name, turns in sides.items():
        row = f"{SIDES[name][0]:<32}"
        for load in at_once:
            speed, first = rate(turns, load), first_token(turns, load)
            if speed is None or first is None:
                row += f"{'-':>10}{'-':>10}"
                continue
            rates.setdefault(name, {})[load] = speed
            row += f"{speed:>10.1f}{first:>9.2f}s"
        memory = turns[-1].get("memory", {})
        if memory:
            share = memory["an_adapter"] / memory["its_file"]
            row += f"   an adapter takes {share:.2f} of its file"
        drafts = turns[-1].get("drafts", {})
        if drafts.get("drafted"):
            row += f"   {drafts['right']} of {drafts['drafted']} drafted tokens right"
        lines.append(row)
    if whole:
        lines += verdicts(rates, max(at_once), min(at_once))
    return "\n".join(lines)


def verdicts(rates: dict[str, dict[int, float]], most: int, least: int) -> list[str]:
    """Ratios beside their goals."""
    lines = []
    own, base = rates.get("laura", {}), rates.get("laura-base", {})
    peers = {name: rates[name] for name in PEERS if most in rates.get(name, {})}
    if most in own and peers:
        best = max(peers, key=lambda name: peers[name][most])
        ratio = own[most] / peers[best][most]
        lines.append(f"mixed, {most} at once: {ratio:.2f}x {SIDES[best][0]} (goal "
                     f"{GOAL_OVER_PEER}x, {reached(ratio >= GOAL_OVER_PEER)})")  # fmt: skip
    for name in ("peft", "peft-lookup"):
        if least in own and least in rates.get(name, {}):
            ratio = own[least] / rates[name][least]
            lines.append(f"mixed, {least} at once: {ratio:.2f}x {SIDES[name][0]} (goal "
                         f"{GOAL_ALONE}x, {reached(ratio >= GOAL_ALONE)})")  # fmt: skip
    if most in own and most in base:
        loss = 1 - own[most] / base[most]
        lines.append(f"mixing costs {100 * loss:.1f} % of the base's rate at {most} at once (goal "
                     f"at most {100 * MOST_LOSS_BY_MIXING:.0f} %, "
                     f"{reached(loss <= MOST_LOSS_BY_MIXING)})")  # fmt: skip
    return lines


def reached(good: bool) -> str:
    """In words."""
    return "reached" if good else "not reached"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    beside = ROOT.parent / "shared" / "data"
    data = os.environ.get("LAURA_DATA") or (str(beside) if beside.is_dir() else None)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=MODEL, help=f"folder or name (default {MODEL})")
    add("--only", default=",".join(SIDES), help=f"some of {','.join(SIDES)}")
    add("--precision", default="fp32,bf16", help="fp32, bf16 or both")
    add("--at-once", default="1,8,32", help="prompts at once (default 1,8,32)")
    add("--adapters", type=int, default=16, help="adapters of rank 16 (default 16)")
    add("--prompt-tokens", type=int, default=60)
    add("--new-tokens", type=int, default=64)
    add("--questions", action="store_true", help="GSM8K's, not random tokens")
    add("--data-dir", type=Path, default=Path(data) if data else None, help="where GSM8K is")
    add("--repeats", type=int, default=3, help="timed runs of each load (default 3)")
    add("--rounds", type=int, default=1, help="turns (default 1)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores by default")
    add("--json", type=Path, help="also write everything measured to this JSON file")
    add("--quick", action="store_true", help="two adapters, four tokens")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    options.precision = options.precision.split(",")
    options.at_once = [int(load) for load in options.at_once.split(",")]
    if options.quick:
        options.adapters, options.new_tokens, options.prompt_tokens = 2, 4, 8
        options.at_once, options.repeats = [1, 2], 1
    if wrong := [name for name in options.only if name not in SIDES]:
        parser.error(f"--only: {', '.join(wrong)} is none of {', '.join(SIDES)}")
    if wrong := [name for name in options.precision if name not in ("fp32", "bf16")]:
        parser.error(f"--precision: {', '.join(wrong)} is neither fp32 nor bf16")
    return options


def say(text: str) -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
