"""Compare what two checkouts compute on the micro base, bit by bit: a change that changes nothing.

    python scripts/same_results.py ../before .

Each trains both methods for a few steps and measures every budget point, evaluates base and
adapter on every micro task, and serves both, greedily and with log-probabilities. Told is
where losses, items, samples or answers differ; the exit code is 1 then.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASKS = "micro_code,micro_math,micro_facts,micro_events,micro_pronouns"
COMPARE = [
    "recipes/micro.yaml", "--workers", "1", "--set", "seeds=[0]", "--set", "search.extend=0",
    "--set", "budget.tokens=[8000,16000]", "--set", "measure.limit=40",
    # In bfloat16 another shape of a product may turn a near tie.
    "--set", "measure.precision=fp32",
    "--set", "arms.full.learning_rates=[8e-4]", "--set", "arms.lora-r16.learning_rates=[5e-3]",
]  # fmt: skip
QUESTIONS = (
    "What is two plus three?", "Who lives in the forest?", "Write a function that adds its inputs.",
    "Where does the animal sleep?", "Tell me a story.",
)  # fmt: skip
# What is of the moment or of the checkout, not of the computation.
INCIDENTAL = ("seconds", "tokens_per_second", "peak_memory_bytes", "version", "laura", "created")


def laura(checkout: Path, *words: str) -> list[str]:
    """The command of a checkout, whichever module it is."""
    module = "laura" if (checkout / "laura/__main__.py").is_file() else "laura.cli"
    return [sys.executable, "-m", module, *words]


def environment(checkout: Path) -> dict[str, str]:
    """Its code, one thread, no name of a model that the Hub would have to be asked for."""
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def run(checkout: Path, *words: str) -> None:
    """Carry a command out in a checkout."""
    subprocess.run(laura(checkout, *words), cwd=checkout, env=environment(checkout), check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def read(path: Path) -> Any:
    """A file of results as plain values."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        if path.suffix == ".json":
            return json.load(file)
        return [json.loads(line) for line in file]


def lasting(value: Any) -> Any:
    """A value without what is of the moment."""
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if k not in INCIDENTAL}
    return [lasting(one) for one in value] if isinstance(value, list) else value


def results(checkout: Path, out: Path) -> dict[str, Any]:
    """Everything a checkout computes, by a name that is the same in every checkout."""
    run(checkout, "compare", *COMPARE, "--out", str(out / "study"))
    found: dict[str, Any] = {}
    adapter = Path()
    for record in sorted((out / "study/runs").glob("*/run.json")):
        known, folder = read(record), record.parent
        arm = known["arm"]
        found[f"{arm} metrics"] = read(folder / "metrics.jsonl")
        for path in sorted(folder.glob("evals/*/*.json*")):
            found[f"{arm} {path.relative_to(folder / 'evals')}"] = read(path)
        last = max((folder / "checkpoints").iterdir())
        adapter = last if (last / "adapter_config.json").is_file() else adapter
    evals = out / "evals"
    run(checkout, "evaluate", "micro", "--adapter", f"a={adapter}", "--tasks", TASKS,
        "--limit", "60", "--out", str(evals))  # fmt: skip
    for path in sorted(evals.glob("*/*.json*")):
        found[f"evaluate {path.relative_to(evals)}"] = read(path)
    adapters = out / "adapters"
    shutil.copytree(adapter, adapters / "a")
    with served(checkout, adapters, out / "log") as url:
        for model in ("micro", "a"):
            for question in QUESTIONS:
                found[f"serve {model} {question!r}"] = answer(url, model, question)
    return {name: lasting(value) for name, value in found.items()}


@contextlib.contextmanager
def served(checkout: Path, adapters: Path, log: Path) -> Iterator[str]:
    """The server of a checkout; gives its address."""
    words = ("serve", "micro", "--adapters", str(adapters), "--unrecorded", "allow", "--port", "0")
    with log.open("w") as file:
        process = subprocess.Popen(laura(checkout, *words), cwd=checkout, stdout=file, stderr=file,
                                   env=environment(checkout))  # fmt: skip
    try:
        while "http://" not in (text := log.read_text()):
            if process.poll() is not None:
                raise SystemExit(f"the server of {checkout} ended:\n{text}")
            time.sleep(0.2)
        yield "http://" + text.split("http://")[1].split()[0].rstrip("/.,;\"'")
    finally:
        process.terminate()
        process.wait(60)


def answer(url: str, model: str, question: str) -> Any:
    """A greedy answer with the log-probabilities of its tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": 24, "logprobs": True, "top_logprobs": 3}  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)["choices"]
    except urllib.error.HTTPError as refusal:
        raise SystemExit(f"{model} refused {question!r}: {refusal.read().decode()}") from refusal


def main() -> int:
    """Compute both sides and tell where they differ."""
    before, after = (Path(word).resolve() for word in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as place:
        sides = []
        for name, checkout in (("before", before), ("after", after)):
            out = Path(place) / name
            out.mkdir()
            sides.append(results(checkout, out))
    differing = [n for n in sorted({*sides[0], *sides[1]}) if sides[0].get(n) != sides[1].get(n)]
    for name in differing:
        missing = [side for side, own in zip(("before", "after"), sides, strict=True)
                   if name not in own]  # fmt: skip
        print(f"{name}: {'missing ' + missing[0] if missing else 'differs'}")
    print(f"{len(sides[1])} results compared, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
