"""How many tokens a second does a corpus get, by how many processes?

    python benchmarks/corpus.py                                  # 1 and 2 processes
    python benchmarks/corpus.py --workers 1,2,4 --tokens 20e6 --rounds 3

The rows of a source are read again and again from its file, each time with another number before
them, and written as a study's corpus: text for pretraining, or conversations. What was written
must be the same bytes by any number of processes, or the exit code is 1. The first seconds in one
process are left out (`ALONE_SECONDS`), starting the others is not.
"""

from __future__ import annotations

import argparse
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


def written(folder: Path, encoder: ExampleEncoder, rows: Iterator[Example], workers: int,
            tokens: int) -> tuple[float, list[str]]:  # fmt: skip
    """Tokens a second, and the hashes of what was written."""
    start = time.perf_counter()
    made = write_corpus(
        folder, encoder.identity, rows, encoder.to_learn, vocabulary=len(encoder.tokenizer),
        masked=encoder.regime == "instruct", enough=Enough(tokens, 0), workers=workers,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    held = sum(len(made.part(place, 0, None).token_ids) for place in range(len(made)))
    return held / seconds, [file_hash(path) for path in sorted(folder.glob("*.bin"))]


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
    crews = [int(text) for text in options.workers.split(",")]
    tokenizer, same = load_tokenizer(resolve_model(MODEL)), True
    for regime, source in {"pretrain": options.texts, "instruct": options.chats}.items():
        encoder = ExampleEncoder(tokenizer, "chat", regime)
        rates: dict[int, list[float]] = {crew: [] for crew in crews}
        hashes = []
        for _ in range(options.rounds):
            for crew in crews:
                rows = endless(Source(source=source), options.data_dir)
                with tempfile.TemporaryDirectory() as folder:
                    rate, found = written(Path(folder), encoder, rows, crew, int(options.tokens))
                rates[crew].append(rate)
                hashes.append(found)
        for crew, each in rates.items():
            ratio = median(each) / median(rates[crews[0]])
            say(
                f"{regime}, {crew} processes: {median(each) / 1e6:.3f} M tokens/s "
                f"({min(each) / 1e6:.3f} to {max(each) / 1e6:.3f}), {ratio:.2f}x"
            )
        same &= all(found == hashes[0] for found in hashes)
    say("the same bytes" if same else "DIFFERENT BYTES")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
