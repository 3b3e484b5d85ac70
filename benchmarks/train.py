"""Training speed and memory: Laura beside TRL with PEFT, in turns in one run.

    python benchmarks/train.py                          everything, 20 to 60 minutes
    python benchmarks/train.py --rounds 1 --steps 3 --methods lora
    python benchmarks/train.py --rounds 2 --only "ing, bf16 autocast"    a few minutes

Both sides train SmolLM2-135M on the same GSM8K tokens, loss on answers only,
LoRA r=16 on all seven maps and full finetuning. Each training is a process of
its own. The first round runs every setting of the peer; further rounds run
Laura and the peer's fastest settings in turns, so that a noisy machine is
noisy for both. The peer lives in `.venvs/trl`, made here when absent. What is
measured and what is not: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sides import start
from tables import GOALS, Tally, method_table, verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER_HOME = ROOT / ".venvs" / "trl"
sys.path.insert(0, str(ROOT))  # measure this checkout, installed or not
REQUIREMENTS = HERE / "peers" / "trl-requirements.txt"

MODEL = "smollm2-135m-instruct-q4"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
STEP_TOKENS = 1800
LEARNING_RATES = {"lora": 3e-4, "full": 3e-5}
FINALISTS = 2
TIME_LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Setting:
    """One way of training.

    Attributes:
        title: Its line in the table.
        side: `laura` or `peer`.
        precision: Arithmetic of the matrix products, fp32 or bf16.
        arguments: What its program is told besides the work and the method.
        spares: Takes a step in small pieces or computes twice, to need less memory; the
            goals are not set against it, its ratio is printed beside them.
    """

    title: str
    side: str
    precision: str
    arguments: tuple[str, ...]
    spares: bool = False


def peer_settings() -> list[Setting]:
    """The peer's settings that a processor without a GPU can run."""
    settings = []
    for precision, words in (("bf16", "bf16 autocast"), ("fp32", "fp32")):
        for layout, name in (
            ("padding", "padding"),
            ("packing", "packing"),
            ("padding_free", "padding-free"),
        ):
            arguments = ("--layout", layout, "--precision", precision)
            settings.append(Setting(f"TRL, {name}, {words}", "peer", precision, arguments))
    single = ("--layout", "padding", "--precision", "bf16", "--accumulate", "all")
    settings.append(Setting("TRL, one example a pass, bf16", "peer", "bf16", single, spares=True))
    saving = ("--layout", "padding", "--precision", "bf16", "--checkpointing")
    settings.append(Setting("TRL, padding, bf16, recomputing", "peer", "bf16", saving, spares=True))
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; what the user can mend ends in one line and exit code 2."""
    from laura.results.errors import LauraError

    options = read_options(arguments)
    try:
        compare(options)
    except LauraError as error:
        say(f"the benchmark cannot run: {error}")
        return 2
    except subprocess.CalledProcessError as error:
        say(f"the peer could not be installed into {PEER_HOME} (pip ended with exit code "
            f"{error.returncode}); see pip's message above")  # fmt: skip
        return 2
    return 0


def compare(options: argparse.Namespace) -> None:
    """Prepare, run in turns, print the tables."""
    from laura.results.errors import UsageError

    laura = laura_setting(options.precision)
    settings = [s for s in peer_settings() if not options.only or options.only in s.title]
    if not settings:
        titles = "; ".join(s.title for s in peer_settings())
        raise UsageError(f"--only {options.only!r} names no setting of the peer: {titles}")
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(options, Path(scratch))
        say("preparing the peer's environment and the work")
        peer_python = prepare_peer()
        facts = runner.prepare_work()
        say(f"{facts['examples_per_step']} examples and about {facts['mean_tokens']:.0f} real "
            f"tokens a step, {100 * facts['labelled_share']:.0f} % of them labelled")  # fmt: skip
        tallies: dict[str, list[Tally]] = {}
        rates: list[dict[str, float]] = []
        for method in options.methods:
            tallies[method] = [
                Tally(s.title, s.side, s.precision, s.spares) for s in [laura, *settings]
            ]
        chosen = {method: {s.title for s in [laura, *settings]} for method in options.methods}
        for turn in range(options.rounds):
            rates.append(runner.measure_machine())
            say(f"round {turn + 1} of {options.rounds}: matrix product "
                + ", ".join(f"{name} {rate:.0f}" for name, rate in rates[-1].items())
                + " GFLOP/s")  # fmt: skip
            for method in options.methods:
                for setting, tally in zip([laura, *settings], tallies[method], strict=True):
                    if setting.title in chosen[method]:
                        tally.add(runner.run(setting, method, peer_python))
                        say(f"  {method}: {tally.last_line()}")
                if turn == 0:
                    chosen[method] = finalists(tallies[method])
    report = [method_table(m, tallies[m], facts, rates) for m in options.methods]
    say("\n" + "\n\n".join(report))
    if options.output:
        results = {
            "facts": facts, "rates_gflops": rates, "goals": GOALS,
            "methods": {m: [t.record() for t in tallies[m]] for m in options.methods},
            "verdicts": {m: verdict(m, tallies[m]) for m in options.methods},
        }  # fmt: skip
        Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


def finalists(tallies: list[Tally]) -> set[str]:
    """Laura, the settings of the peer that were fastest, and the fastest that spares memory."""
    peers = [t for t in tallies if t.side == "peer" and t.rates]
    peers.sort(key=lambda tally: -tally.tokens_per_second)
    chosen = [t for t in tallies if t.side == "laura"]
    chosen += [t for t in peers if not t.spares][:FINALISTS]
    chosen += [t for t in peers if t.spares][:1]
    return {t.title for t in chosen}


def laura_setting(precision: str) -> Setting:
    """Laura as its recipe's defaults have it, in the precision asked for."""
    from laura.models.device import pick_device, resolve_precision

    chosen = str(resolve_precision(precision, pick_device("cpu"))).removeprefix("torch.")
    name = {"bfloat16": "bf16", "float32": "fp32"}[chosen]
    words = "bf16 autocast" if name == "bf16" else "fp32"
    return Setting(f"Laura, {words}", "laura", name, ("--precision", name))


def prepare_peer() -> Path:
    """The peer's Python, in an environment made with pip when it is not there yet."""
    python = PEER_HOME / "bin" / "python"
    stamp = PEER_HOME / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    # Again when it is there: an interrupted creation leaves a Python without pip.
    venv.create(PEER_HOME, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
    stamp.write_text(wanted)
    return python


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

    def prepare_work(self) -> dict[str, Any]:
        """Write the steps both sides train on; returns facts about them."""
        from transformers import AutoTokenizer

        from laura.data.sources import load_examples
        from laura.data.templates import encode_all
        from laura.models.load import resolve_model
        from laura.recipe.sections import Source

        folder = resolve_model(MODEL)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        needed = 14 * (self.options.warmup + self.options.steps)
        source = Source(source="gsm8k", split="train", limit=needed)
        examples = load_examples(source, self.options.data_dir)
        encoded = encode_all(examples, tokenizer, "chat", "instruct")
        rows = [
            {
                "input_ids": one.token_ids,
                "labels": [
                    token if on else -100
                    for token, on in zip(one.token_ids, one.supervised, strict=True)
                ],
            }
            for one in encoded
        ]
        lengths = [len(row["input_ids"]) for row in rows]
        per_step = max(1, round(STEP_TOKENS * len(rows) / sum(lengths)))
        work = {
            "model": str(folder), "rank": RANK, "targets": TARGETS,
            "learning_rate": LEARNING_RATES,
            "tokens_per_step": STEP_TOKENS, "examples_per_step": per_step,
            "steps": [rows[at : at + per_step] for at in range(0, len(rows), per_step)],
        }  # fmt: skip
        self.work_file.write_text(json.dumps(work))
        labelled = sum(label >= 0 for row in rows for label in row["labels"])
        return {
            "examples_per_step": per_step,
            "mean_tokens": per_step * sum(lengths) / len(rows),
            "labelled_share": labelled / sum(lengths),
            "rank": RANK,
            "config": json.loads((folder / "config.json").read_text()),
            "threads": self.options.threads,
        }

    def measure_machine(self) -> dict[str, float]:
        """The machine's rate of matrix products just now, in GFLOP/s by precision."""
        program = [sys.executable, str(HERE / "workers" / "laura_train.py"), "--rate"]
        result = self._start(program)
        return {name: float(rate) for name, rate in result.items()}

    def run(self, setting: Setting, method: str, peer_python: Path) -> dict[str, Any]:
        """Train once; the result, or `{"failed": reason}`."""
        program = [sys.executable, str(HERE / "workers" / "laura_train.py")]
        if setting.side == "peer":
            program = [str(peer_python), str(HERE / "peers" / "trl_train.py")]
        extra = ["--work", str(self.work_file), "--method", method, *setting.arguments]
        times = ["--warmup", str(self.options.warmup), "--steps", str(self.options.steps)]
        return self._start([*program, *extra, *times])

    def _start(self, program: list[str]) -> dict[str, Any]:
        return start(
            program,
            self.result_file,
            threads=self.options.threads,
            folders=(ROOT,),
            seconds=TIME_LIMIT_SECONDS,
        )


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    beside = ROOT.parent / "shared" / "data"
    data = os.environ.get("LAURA_DATA") or (str(beside) if beside.is_dir() else None)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn (default 5)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default 2)")
    parser.add_argument("--methods", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument(
        "--only", default="", help="peer settings whose title has this, as 'packing'"
    )
    precisions = ("auto", "bf16", "fp32")
    parser.add_argument("--precision", choices=precisions, default="auto", help="Laura's only")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of every training, all cores")
    parser.add_argument("--data-dir", type=Path, default=Path(data) if data else None)
    parser.add_argument("--output", help="also write everything measured to this JSON file")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.warmup, options.threads) < 1:
        parser.error("--rounds, --steps, --warmup and --threads must be at least 1")
    return options


def say(text: str) -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
