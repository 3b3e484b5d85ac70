"""How many tokens a second does a corpus get, by how many processes?

    python benchmarks/corpus.py                                  # by this process, by 1 and by 2
    python benchmarks/corpus.py --workers 1,2,4 --tokens 20e6 --rounds 3

The rows of a source are read again and again from its file, each time with another number before
them, and written as a study's corpus: text for pretraining, or conversations. What was written
must be the same bytes in every way, or the exit code is 1. `alone` is this process with the
threads that tokenizers starts by itself; 1 is one process with one thread. Several processes are
started at once here, not after `ALONE_SECONDS`, and their start counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

from laura.data import corpus
from laura.data.corpus import Enough, write_corpus
from laura.data.examples import Example
from laura.data.sources import stream_examples
from laura.models.load import load_tokenizer, resolve_model
from laura.recipe.sections import Source
from laura.results.store import file_hash
from laura.study.material import ExampleEncoder

WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
MODEL = "smollm2-135m-instruct-q4"


def endless(source: Source, data_dir: Path | None) -> Iterator[Example]:
    """The rows of a source, numbered so that none comes twice."""
    numbers = count()
    while True:
        for example in stream_examples(source, data_dir):
            number = next(numbers)
            messages = tuple((role, f"{number}. {text}") for role, text in example.messages)
            text = f"{number}. {example.text}" if example.text else ""
            yield replace(example, index=number, messages=messages, text=text)


def core_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in WHO)


def written(folder: Path, encoder: ExampleEncoder, rows: Iterator[Example], workers: int,
            tokens: int) -> tuple[float, float, list[str]]:  # fmt: skip
    """Tokens a second, and a core's second, and the hashes of what was written."""
    start, cores = time.perf_counter(), core_seconds()
    made = write_corpus(
        folder, encoder.identity, rows, encoder.to_learn, vocabulary=len(encoder.tokenizer),
        masked=encoder.regime == "instruct", enough=Enough(tokens, 0), workers=workers,
    )  # fmt: skip
    seconds, cores = time.perf_counter() - start, core_seconds() - cores
    held = sum(len(made.marks(place)) for place in range(len(made)))
    return held / seconds, held / cores, [file_hash(path) for path in sorted(folder.glob("*.bin"))]


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the rates; 1 where the bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--tokens", type=float, default=1e7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", default="builtin:plain-text", help="what is pretrained on")
    parser.add_argument("--chats", default="builtin:word-problems", help="what is answered")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    corpus.ALONE_SECONDS = 0.0
    crews = ["alone", *options.workers.split(",")]
    tokenizer, same = load_tokenizer(resolve_model(MODEL)), True
    for regime, source in {"pretrain": options.texts, "instruct": options.chats}.items():
        encoder = ExampleEncoder(tokenizer, "chat", regime)
        rates: dict[str, list[list[float]]] = {crew: [] for crew in crews}
        hashes = []
        for _ in range(options.rounds):
            for crew in crews:
                os.environ["TOKENIZERS_PARALLELISM"] = str(crew == "alone").lower()
                rows = endless(Source(source=source), options.data_dir)
                with tempfile.TemporaryDirectory() as folder:
                    *rate, found = written(
                        Path(folder), encoder, rows, 1 if crew == "alone" else int(crew),
                        int(options.tokens),
                    )  # fmt: skip
                rates[crew].append(rate)
                hashes.append(found)
        for crew, each in rates.items():
            by_clock, by_core = zip(*each, strict=True)
            ratio = median(by_clock) / median(rate for rate, _ in rates[crews[1]])
            say(
                f"{regime}, by {crew}: {median(by_clock) / 1e6:.3f} M tokens/s "
                f"({min(by_clock) / 1e6:.3f} to {max(by_clock) / 1e6:.3f}), {ratio:.2f}x, "
                f"{median(by_core) / 1e6:.3f} M a core's second"
            )
        same &= all(found == hashes[0] for found in hashes)
    say("the same bytes" if same else "DIFFERENT BYTES")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
