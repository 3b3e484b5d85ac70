"""What a study replays: every source read or drawn, checked, tokenised, ready to be mixed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from laura.data.corpus import Corpus, Enough, Subset, write_corpus
from laura.data.end_tokens import end_tokens
from laura.data.examples import Example, ExampleIdentity
from laura.data.mixing import Pool, Replay
from laura.data.packing import fit
from laura.data.sources import count_examples, is_endless, stream_examples, too_large
from laura.data.splits import fingerprint_of, measured_rows, refuse_measured
from laura.data.templates import Encoded
from laura.engine.engine import Engine
from laura.models.device import resolve_precision
from laura.recipe.sections import Recipe, ReplaySource
from laura.results.errors import DataError
from laura.results.progress import SILENT, Progress
from laura.results.store import content_hash, disk_faults
from laura.study.base_samples import base_samples, load_prompts
from laura.study.material import RESERVE, ExampleEncoder, corpus_identity
from laura.study.workbench import Workbench


@dataclass(frozen=True)
class ReplayPart:
    """One source of replay.

    Attributes:
        name: What it is called in run.json and in words.
        weight: Its share of the replay, relative to the others'.
        encoded: Its examples as tokens.
        fingerprint: Hash of their content, for run IDs.
        folder: Where the tokens lie.
    """

    name: str
    weight: float
    encoded: Sequence[Encoded]
    fingerprint: str
    folder: Path


@dataclass(frozen=True)
class ReplayData:
    """All that the arms of a study replay.

    Attributes:
        recipe: The recipe.
        parts: The sources; empty where nothing is replayed.
        progress: Where to report.
    """

    recipe: Recipe
    parts: Sequence[ReplayPart]
    progress: Progress = SILENT

    def mixture(self, fraction: float) -> Replay | None:
        """What an arm with this share of replay reads beside the target."""
        if not fraction:
            return None
        return Replay(fraction, self._pools, self.recipe.data.replay_exhausted)

    def identity(self, fraction: float) -> dict[str, Any]:
        """What replay adds to the identity of a run; nothing where there is none."""
        if not fraction:
            return {}
        return {"replay": {"fraction": fraction, "sources": self.sources}}

    @property
    def sources(self) -> list[list[Any]]:
        """Weight and fingerprint of every source."""
        return [[part.weight, part.fingerprint] for part in self.parts]

    @cached_property
    def _pools(self) -> list[Pool]:
        return [self._pool(number, part) for number, part in enumerate(self.parts)]

    def _pool(self, number: int, part: ReplayPart) -> Pool:
        try:
            fitted = fit(
                part.encoded,
                self.recipe.train.row_tokens,
                self.recipe.data.overlong,
                split_long=True if self.recipe.regime == "pretrain" else "texts",
                progress=self.progress,
            )
        except DataError as error:
            raise DataError(f"data.replay.{number} ({part.name}): {error}") from error
        return Pool(part.name, part.encoded, fitted, part.weight)

    def forget_others(self, folder: Path) -> None:
        """Delete the tokens of sources that are replayed no more; texts the base wrote stay."""
        used = {part.folder for part in self.parts}
        with disk_faults(folder):
            for other in (folder / "corpus").glob("*"):
                if other.is_dir() and other not in used:
                    shutil.rmtree(other)


def prepare_replay(
    recipe: Recipe,
    bench: Workbench,
    encoder: ExampleEncoder,
    measured: Mapping[str, Sequence[ExampleIdentity]],
    folder: Path,
    data_dir: Path | None,
    progress: Progress = SILENT,
) -> ReplayData:
    """Read every source of `data.replay`, or have the base write it.

    Args:
        recipe: What is replayed.
        bench: Holds the base.
        encoder: How conversations become tokens; texts are learnt on every token.
        measured: What is measured on, by name; none of it may be replayed.
        folder: The study's folder of replay.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        progress: Where to report.

    Raises:
        DataError: missing, empty or malformed data, or rows that are measured on.
        StoreError: the disk is full or the folder cannot be written.
    """
    reader = _Reader(recipe, bench, encoder, measured, folder, data_dir, progress)
    parts = [reader.part(number, one) for number, one in enumerate(recipe.data.replay)]
    return ReplayData(recipe, parts, progress)


@dataclass(frozen=True)
class _Reader:
    """Reads one source after the other; see `prepare_replay` for what it holds."""

    recipe: Recipe
    bench: Workbench
    encoder: ExampleEncoder
    measured: Mapping[str, Sequence[ExampleIdentity]]
    folder: Path
    data_dir: Path | None
    progress: Progress

    def part(self, number: int, source: ReplaySource) -> ReplayPart:
        where = f"data.replay.{number}"
        try:
            return self._sampled(where, source) if source.is_sampled else self._read(where, source)
        except DataError as error:
            told = str(error).startswith("data.replay.")
            raise error if told else DataError(f"{where}: {error}") from error

    def _read(self, where: str, source: ReplaySource) -> ReplayPart:
        enough = self._enough(source) if is_endless(source, self.data_dir) else None
        corpus, place = self._corpus(
            corpus_identity(source, enough, self.encoder, self.data_dir),
            stream_examples(source, self.data_dir),
            self._encode,
            lambda: count_examples(source, self.data_dir),
            enough,
        )
        refuse_measured(where, corpus.identities, self.measured)
        named = [source.source, source.subset, source.split]
        name = ", ".join(part for part in named if part)
        return ReplayPart(name, source.weight, corpus, fingerprint_of(corpus.identities), place)

    def _sampled(self, where: str, source: ReplaySource) -> ReplayPart:
        prompts = load_prompts(source, self.data_dir)
        refuse_measured(f"{where}.prompts", prompts, self.measured)
        model = self.bench.base.model
        precision = resolve_precision(self.recipe.measure.precision, model.device)
        engine = Engine(model, self.encoder.tokenizer, precision, progress=self.progress)
        samples = base_samples(
            source,
            prompts,
            engine,
            self.encoder,
            self.bench.base.fingerprint,
            self.folder / "samples",
            self.progress,
        )

        def encode(examples: list[Example]) -> list[Encoded]:
            ends = end_tokens(self.encoder.tokenizer)
            items = zip(examples, self._encode(examples), strict=True)
            return [_unended(i, ends) if e.index in samples.cut else i for e, i in items]

        examples = samples.examples
        written = [[example.digest, example.index in samples.cut] for example in examples]
        identity = {"written": content_hash(written), **self.encoder.identity}
        corpus, place = self._corpus(identity, iter(examples), encode, lambda: len(examples))
        known = measured_rows(corpus.identities, self.measured)
        kept = [number for number in range(len(corpus)) if number not in known]
        self._tell(where, samples.blank, len(known))
        if not kept:
            raise DataError("every text the base wrote is one that is measured on; name prompts")
        fingerprint = content_hash([identity, kept])
        return ReplayPart(source.source, source.weight, Subset(corpus, kept), fingerprint, place)

    def _corpus(
        self,
        identity: dict[str, Any],
        examples: Iterator[Example],
        encode: Callable[[list[Example]], list[Encoded]],
        count: Callable[[], float],
        enough: Enough | None = None,
    ) -> tuple[Corpus, Path]:
        place = self.folder / "corpus" / content_hash(identity)[:12]
        corpus = write_corpus(
            place,
            identity,
            examples,
            encode,
            vocabulary=len(self.encoder.tokenizer),
            masked=self.encoder.regime == "instruct",
            count=count,
            enough=enough,
            progress=self.progress,
        )
        return corpus, place

    def _encode(self, examples: list[Example]) -> list[Encoded]:
        """Tokens of examples: of conversations as the regime learns them, of texts all."""
        texts = ExampleEncoder(self.encoder.tokenizer, self.encoder.template, "pretrain")
        chats = iter(self.encoder.to_learn([e for e in examples if e.messages]))
        plain = iter(texts.to_learn([e for e in examples if not e.messages]))
        return [next(chats if example.messages else plain) for example in examples]

    def _enough(self, source: ReplaySource) -> Enough:
        """How far an endless source is read: for the arm that replays most."""
        budget, recipe = self.recipe.budget.tokens, self.recipe
        if budget is None:
            raise too_large(source)
        share = source.weight / sum(one.weight for one in recipe.data.replay)
        most = max(arm.replay for arm in recipe.arms.values())
        # A source may be a row ahead of its share.
        tokens = math.ceil(budget[-1] * most * share) + 2 * recipe.train.row_tokens
        return Enough(tokens, RESERVE)

    def _tell(self, where: str, blank: int, known: int) -> None:
        told = {"are blank": blank, "are measured on": known}
        parts = [f"{count} {what}" for what, count in told.items() if count]
        if parts:
            self.progress.say(f"{where}: of the base's texts, {' and '.join(parts)}; left out")


def _unended(item: Encoded, ends: frozenset[int]) -> Encoded:
    """A text that was cut off: without its end token and what follows it."""
    stop = max((i for i, token in enumerate(item.token_ids) if token in ends), default=None)
    return Encoded(item.index, item.token_ids[:stop], item.supervised[:stop], item.supervised_bytes)
