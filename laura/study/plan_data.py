"""What a plan must know of the data: length and number of examples, from a look at the first.

Tokens are counted with the base's tokenizer.json where it lies on the disk, else as a
quarter of the characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import isinf
from pathlib import Path
from typing import Any

from laura.data.examples import Example
from laura.data.sources import count_examples, is_endless, source_file, stream_examples
from laura.recipe.sections import Recipe, Source
from laura.results.errors import DataError, HubError

LOOKED_AT = 500
CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Survey:
    """What is known of the training rows.

    Attributes:
        epoch_tokens: Tokens of one epoch; None where it cannot be told.
        examples: Examples of one epoch; None where it cannot be told.
        document_tokens: Mean tokens of an example, weighed by tokens and cut to a row: how
            many others a token has in its own document.
        learnt: Share of tokens with a label.
        source: How it is known, in words.
        replay_tokens: Tokens of all sources of replay; None where it cannot be told.
        replay_examples: Their examples; None where it cannot be told.
    """

    epoch_tokens: int | None
    examples: int | None
    document_tokens: float
    learnt: float
    source: str
    replay_tokens: int | None = 0
    replay_examples: int | None = 0

    def learnt_share(self, replay: float) -> float:
        """Share of tokens with a label, where so much is replayed: all of what is, at most."""
        return (1 - replay) * self.learnt + replay


def survey(
    recipe: Recipe, tokenizer: Path | None, data_dir: Path | None, epoch_tokens: int | None
) -> Survey:
    """Look at the first training rows, where they lie on this machine.

    Args:
        recipe: The recipe.
        tokenizer: tokenizer.json of the base, or None.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        epoch_tokens: What the user says an epoch holds; wins over counting.
    """
    row, counter = recipe.train.row_tokens, _Counter(tokenizer)
    replayed = _replayed(recipe, counter, data_dir)
    seen = _look(recipe.data.train, counter, data_dir)
    if isinstance(seen, str):
        return Survey(epoch_tokens, None, row, 1.0, seen, *replayed)
    total = sum(whole for whole, _ in seen.sizes)
    learnt = sum(answers for _, answers in seen.sizes) / total
    cut = [min(whole, row) for whole, _ in seen.sizes]
    weighed = sum(one * one for one in cut) / sum(cut)
    known = epoch_tokens
    examples = None
    if seen.count is not None:
        held_out = recipe.data.validation_rows if recipe.data.validation is None else 0
        examples = max(1, seen.count - held_out)
        known = epoch_tokens or round(examples * total / len(seen.sizes))
    words = f"{len(seen.sizes)} rows looked at, {counter.words}"
    learnt = learnt if recipe.regime == "instruct" else 1.0
    return Survey(known, examples, weighed, learnt, words, *replayed)


@dataclass(frozen=True)
class _Seen:
    """Of a source: tokens and answers' tokens of the first rows, and how many rows there are."""

    sizes: list[tuple[int, int]]
    count: int | None


def _look(source: Source, counter: _Counter, data_dir: Path | None) -> _Seen | str:
    """The first rows of a source, or why they cannot be seen."""
    absent = "the data is not on this machine: full rows, all learnt"
    try:
        if source_file(source, data_dir) is None and not source.source.startswith("builtin:"):
            return absent
        looked = list(islice(stream_examples(source, data_dir), LOOKED_AT))
        count = count_examples(source, data_dir)
        endless = isinf(count) or is_endless(source, data_dir)
    except (DataError, HubError) as error:
        return f"the data cannot be read ({error})"
    sizes = [counter(example) for example in looked]
    if not sum(whole for whole, _ in sizes):
        return absent
    return _Seen(sizes, None if endless else int(count))


def _replayed(
    recipe: Recipe, counter: _Counter, data_dir: Path | None
) -> tuple[int | None, int | None]:
    """Tokens and examples of all sources of replay, as they are kept on the disk."""
    tokens = examples = 0
    for source in recipe.data.replay:
        if source.is_sampled:
            tokens += (source.count or 0) * (source.tokens + source.prompt_tokens)
            examples += source.count or 0
            continue
        seen = _look(source, counter, data_dir)
        if isinstance(seen, str) or seen.count is None:
            return None, None
        tokens += round(seen.count * sum(whole for whole, _ in seen.sizes) / len(seen.sizes))
        examples += seen.count
    return tokens, examples


class _Counter:
    """Tokens of an example, and of its answers."""

    def __init__(self, file: Path | None) -> None:
        self.tokenizer: Any = None
        self.words = f"{CHARACTERS_A_TOKEN} characters a token"
        if file is not None and file.is_file():
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(file))
            self.words = "counted with the base's tokenizer, without the chat template's own tokens"

    def __call__(self, example: Example) -> tuple[int, int]:
        if not example.messages:
            size = self._count(example.text)
            return size, size
        sizes = [(role, self._count(text)) for role, text in example.messages]
        whole = sum(size for _, size in sizes)
        return whole, sum(size for role, size in sizes if role == "assistant")

    def _count(self, text: str) -> int:
        if self.tokenizer is None:
            return max(1, len(text) // CHARACTERS_A_TOKEN)
        return max(1, len(self.tokenizer.encode(text, add_special_tokens=False).ids))
