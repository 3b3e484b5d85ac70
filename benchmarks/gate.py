"""What a gate before an engine costs: the same engine in the server's process, and behind a gate.

    python benchmarks/gate.py                 about ten minutes on two cores
    python benchmarks/gate.py --quick         the micro base and little work, to see that it runs

Both servers run all the time and are asked in turns, over HTTP, with the same prompts of random
tokens. Measured are the time until the first token of one answer at a time, and tokens a second
of many at once. What is asked: at most 2 ms more, and at most 3 % fewer tokens a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL, QUICK_MODEL = "smollm2-135m-instruct-q4", "micro"
MOST_ADDED_MS, MOST_LOSS = 2.0, 0.03


@dataclass
class Measured:
    """A side: seconds until each first token, and tokens a second of each run of many at once."""

    first: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


@contextmanager
def serving(*words: str) -> Iterator[str]:
    """A `laura serve` of this checkout; its URL."""
    command = [sys.executable, "-m", "laura", "serve", *words, "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as child:
        try:
            assert child.stdout is not None
            yield json.loads(child.stdout.readline())["url"]
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


async def ask(url: str, model: str, prompt: list[int], tokens: int) -> float:
    """Have one answer streamed; seconds until its first text."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
         "ignore_eos": True, "stream": True}
    )  # fmt: skip
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    began, first = time.perf_counter(), None
    writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
    async for line in reader:
        if line.startswith(b"data: {") and first is None:
            first = time.perf_counter() - began
        if b"data: [DONE]" in line:
            break
    else:
        raise SystemExit("an answer broke off")
    writer.close()
    assert first is not None
    return first


def prompts(source: random.Random, count: int, options: argparse.Namespace) -> list[list[int]]:
    """Prompts that nobody has asked before: nothing of them is kept."""
    length, vocabulary = options.prompt_tokens, options.vocabulary
    return [[source.randrange(100, vocabulary) for _ in range(length)] for _ in range(count)]


def measure(url: str, options: argparse.Namespace, found: Measured, seed: int) -> None:
    """A turn of one side."""
    source, model, tokens = random.Random(seed), options.model, options.new_tokens

    async def together() -> float:
        every = prompts(source, options.at_once, options)
        began = time.perf_counter()
        await asyncio.gather(*(ask(url, model, one, tokens) for one in every))
        return options.at_once * tokens / (time.perf_counter() - began)

    for one in prompts(source, options.alone, options):
        found.first.append(asyncio.run(ask(url, model, one, 2)))
    found.rates.append(asyncio.run(together()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = read_options(arguments)
    own, gate = Measured(), Measured()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        key = Path(scratch) / "key"
        key.write_text("k" * 64)
        shared = ("--engine-key-file", str(key))
        drafts = () if options.drafts else ("--no-drafts",)
        in_process = stack.enter_context(serving(options.model, *drafts))
        engine = stack.enter_context(serving(options.model, "--headless", *shared, *drafts))
        before = stack.enter_context(serving(options.model, "--backend", engine, *shared))
        for seed in range(-1, options.rounds):
            for url, found in ((in_process, own), (before, gate)):
                measure(url, options, found if seed >= 0 else Measured(), seed)
            if seed >= 0:
                print(f"round {seed + 1}: {own.rates[-1]:.1f} and {gate.rates[-1]:.1f} tokens/s")
    print(table(own, gate, options))
    return 0


def table(own: Measured, gate: Measured, options: argparse.Namespace) -> str:
    """Medians of both sides, and their differences beside what is asked."""
    first = [1000 * statistics.median(one.first) for one in (own, gate)]
    rates = [statistics.median(one.rates) for one in (own, gate)]
    loss = statistics.median(1 - b / a for a, b in zip(own.rates, gate.rates, strict=True))
    return "\n".join(
        [
            f"{options.model}, {options.prompt_tokens} tokens read, {options.new_tokens} written",
            f"first token alone, ms:      in process {first[0]:7.2f}   gate {first[1]:7.2f}   "
            f"added {first[1] - first[0]:5.2f} (at most {MOST_ADDED_MS:g})",
            f"tokens/s, {options.at_once:2} at once:      in process {rates[0]:7.1f}   "
            f"gate {rates[1]:7.1f}   lost {100 * loss:5.1f} % (at most {100 * MOST_LOSS:g})",
        ]
    )


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=MODEL, help=f"folder or name (default {MODEL})")
    add("--vocabulary", type=int, default=40_000, help="tokens of prompts are 100 to this")
    add("--prompt-tokens", type=int, default=60)
    add("--new-tokens", type=int, default=64)
    add("--at-once", type=int, default=32)
    add("--alone", type=int, default=20, help="answers for the first token, each turn")
    add("--rounds", type=int, default=6, help="turns of each side, after one to warm up")
    add("--drafts", action="store_true", help="with drafts, whose number depends on chance")
    add("--quick", action="store_true", help="the micro base, two turns")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.vocabulary, options.rounds = QUICK_MODEL, 500, 2
        options.new_tokens, options.alone = 16, 5
    return options


if __name__ == "__main__":
    sys.exit(main())
