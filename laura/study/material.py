"""What a study trains and measures on: encoded examples and held-out documents."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from laura.data.corpus import Enough, Subset, write_corpus
from laura.data.examples import Example, ExampleIdentity
from laura.data.rows import files_of
from laura.data.sources import (
    count_examples,
    is_endless,
    source_file,
    stream_examples,
    too_large,
)
from laura.data.splits import load_held_out, make_splits
from laura.data.templates import Encoded, check_end_token, encode_all
from laura.engine.requests import TokenDocument
from laura.recipe.sections import BudgetSection, DataSection, MeasureSection, Source
from laura.recipe.tasks import DRIFT
from laura.results.errors import DataError
from laura.results.progress import SILENT, Progress
from laura.results.store import content_hash, disk_faults

RESERVE = 100  # documents of an endless source that are read beyond those needed


@dataclass(frozen=True)
class StudyData:
    """Everything a study reads, as tokens.

    Attributes:
        train: Encoded training examples, read from the disk as they are needed.
        documents: Held-out documents by task: `validation_loss`, and where the
            recipe names their data `target_loss` and `source_loss`, and the
            divergences on either.
        measured: What is measured on, by the key of its source; rows held out of
            `train` are `validation`.
        fingerprint: Hash of the data, for run IDs.
        encoding: Hash of what made tokens of it, for run IDs.
        corpus_folder: Where the training tokens lie.
    """

    train: Sequence[Encoded]
    documents: dict[str, list[TokenDocument]]
    measured: dict[str, Sequence[ExampleIdentity]]
    fingerprint: str
    encoding: str
    corpus_folder: Path


@dataclass(frozen=True)
class ExampleEncoder:
    """How the examples of a study become tokens.

    Attributes:
        tokenizer: The base's.
        template: The recipe's `data.template`.
        regime: The recipe's `regime`.
    """

    tokenizer: Any
    template: Any
    regime: Any

    def __call__(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokens of some examples."""
        return encode_all(examples, self.tokenizer, self.template, self.regime)

    def to_learn(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokens of training examples, each of which must teach the end token."""
        encoded = self(examples)
        if self.regime == "instruct":
            check_end_token(encoded, self.tokenizer)
        return encoded

    def to_replay(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokens of examples: of conversations as the regime learns them, of texts all."""
        texts = ExampleEncoder(self.tokenizer, self.template, "pretrain")
        chats = iter(self.to_learn([e for e in examples if e.messages]))
        plain = iter(texts.to_learn([e for e in examples if not e.messages]))
        return [next(chats if example.messages else plain) for example in examples]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines the tokens, whatever the examples."""
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend else sorted(tokenizer.get_vocab().items())
        named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return {
            "tokenizer": content_hash([rules, tokenizer.chat_template, named]),
            "template": self.template,
            "regime": self.regime,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of the identity, for studies and runs."""
        return content_hash(self.identity)


def prepare(
    section: DataSection,
    measure: MeasureSection,
    budget: BudgetSection,
    encoder: ExampleEncoder,
    folder: Path,
    data_dir: Path | None,
    workers: int = 1,
    progress: Progress = SILENT,
) -> StudyData:
    """Load, check, template and tokenise all data of a recipe.

    Args:
        section: The recipe's `data`.
        measure: How many held-out documents, and how long.
        budget: How far an endless source is read.
        encoder: Makes tokens.
        folder: Where corpora of training tokens lie, each named by what it was made
            of, so that no corpus is ever overwritten by another.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        workers: Processes that tokenise what takes long.
        progress: Where to report.

    Raises:
        DataError: missing, empty, malformed or overlapping data; an answer
            whose end token would not be learnt.
        StoreError: the disk is full or the folder cannot be written.
    """
    # First what is small: a mistake in it must not be told after hours of tokenising.
    others = load_held_out(section, data_dir)
    identity, enough = _identity(section, budget, encoder, data_dir)
    place = folder / content_hash(identity)[:12]
    corpus = write_corpus(
        place,
        identity,
        stream_examples(section.train, data_dir, progress.say),
        encoder.to_learn,
        vocabulary=len(encoder.tokenizer),
        masked=encoder.regime == "instruct",
        count=lambda: count_examples(section.train, data_dir),
        enough=enough,
        workers=workers,
        progress=progress,
    )
    splits = make_splits(section, corpus.identities, others)
    count = measure.loss_documents
    held_out = [corpus[place] for place in splits.held_out[:count]]
    texts = ExampleEncoder(encoder.tokenizer, encoder.template, "pretrain")
    parts = {
        "validation_loss": held_out or encoder(others.validation[:count]),
        "target_loss": encoder(others.test[:count]),
        "source_loss": texts(others.source_text[:count]),
    }
    documents = {
        name: documents_of(encoded, encoder.tokenizer, measure.loss_tokens)
        for name, encoded in parts.items()
        if encoded
    }
    for name in DRIFT:
        text = "source_loss" if name.endswith("source") else "target_loss"
        if name in measure.forgetting and text in documents:
            documents[name] = documents[text]
    train = Subset(corpus, splits.train)
    measured: dict[str, Sequence[ExampleIdentity]] = {
        "data.validation": [corpus.identities[row] for row in splits.held_out] or others.validation,
        "data.test": others.test,
        "data.source_text": others.source_text,
    }
    return StudyData(train, documents, measured, splits.fingerprint, encoder.fingerprint, place)


def _identity(
    section: DataSection, budget: BudgetSection, encoder: ExampleEncoder, data_dir: Path | None
) -> tuple[dict[str, Any], Enough | None]:
    """What determines the training tokens, and when an endless source is enough."""
    source, enough = section.train, None
    if is_endless(source, data_dir):
        if budget.tokens is None:
            raise too_large(source)
        held_out = section.validation_rows if section.validation is None else 0
        # Those held out are drawn from all, and may be longer than those that came last.
        enough = Enough(budget.tokens[-1], 2 * held_out + RESERVE)
    return corpus_identity(source, enough, encoder, data_dir), enough


def corpus_identity(
    source: Source, enough: Enough | None, encoder: ExampleEncoder, data_dir: Path | None
) -> dict[str, Any]:
    """What determines the tokens of a source that is read so far."""
    path = source_file(source, data_dir)
    states = [_file_state(one) for one in files_of(path)] if path is not None else [None]
    return {
        "source": source.identity(type(source).model_fields.keys() - Source.model_fields.keys()),
        "file": states[0] if len(states) == 1 else content_hash(states),
        "enough": [enough.tokens, enough.further] if enough else None,
        **encoder.identity,
    }


def _file_state(path: Path) -> list[Any]:
    """What changes when a file does."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def keep_only(folder: Path, used: Collection[Path]) -> None:
    """Delete the other corpora that lie in a folder.

    Raises:
        StoreError: they cannot be deleted.
    """
    with disk_faults(folder):
        for other in folder.glob("*"):
            if other.is_dir() and other not in used:
                shutil.rmtree(other)


def documents_of(
    encoded: Sequence[Encoded], tokenizer: Any, most_tokens: int
) -> list[TokenDocument]:
    """Held-out documents, cut to `measure.loss_tokens`.

    Raises:
        DataError: no document has a target within so many tokens.
    """
    documents = []
    for item in encoded:
        ids = item.token_ids[:most_tokens]
        supervised = item.supervised[:most_tokens]
        if not any(supervised):
            continue
        whole = len(ids) == len(item.token_ids)
        size = item.supervised_bytes if whole else _bytes(ids, supervised, tokenizer)
        documents.append(TokenDocument(ids, supervised, size, item.index))
    if encoded and not documents:
        raise DataError(
            f"none of {len(encoded)} held-out examples has a target within measure.loss_tokens "
            f"= {most_tokens} tokens; raise it"
        )
    return documents


def _bytes(ids: list[int], supervised: list[bool], tokenizer: Any) -> int:
    wanted = [token for token, target in zip(ids, supervised, strict=True) if target]
    return len(tokenizer.decode(wanted).encode("utf-8"))
