"""What a study trains and measures on: encoded examples and held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from laura.data.corpus import Corpus, Enough, Subset, write_corpus
from laura.data.examples import Example
from laura.data.files import count_rows
from laura.data.sources import is_endless, source_file, stream_examples, too_large
from laura.data.splits import make_splits
from laura.data.templates import Encoded, check_end_token, encode_all
from laura.errors import DataError
from laura.models.engine import TokenDocument
from laura.progress import SILENT, Progress
from laura.recipe import BudgetSection, DataSection, MeasureSection
from laura.store import content_hash


@dataclass(frozen=True)
class StudyData:
    """Everything a study reads, as tokens.

    Attributes:
        train: Encoded training examples, read from the disk as they are needed.
        documents: Held-out documents by task: `validation_loss`, and where the
            recipe names their data `target_loss` (also for `kl`) and `source_loss`.
        fingerprint: Hash of the data, for run IDs.
    """

    train: Sequence[Encoded]
    documents: dict[str, list[TokenDocument]]
    fingerprint: str


@dataclass(frozen=True)
class Encoder:
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

    @property
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


def prepare(
    section: DataSection,
    measure: MeasureSection,
    budget: BudgetSection,
    encoder: Encoder,
    folder: Path,
    data_dir: Path | None,
    progress: Progress = SILENT,
) -> StudyData:
    """Load, check, template and tokenise all data of a recipe.

    Args:
        section: The recipe's `data`.
        measure: How many held-out documents, and how long.
        budget: How far an endless source is read.
        encoder: Makes tokens.
        folder: Where the training tokens lie; reused where they are the same.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        progress: Where to report.

    Raises:
        DataError: missing, empty, malformed or overlapping data; an answer
            whose end token would not be learnt.
        StoreError: the disk is full or the folder cannot be written.
    """
    corpus = _corpus(section, budget, encoder, folder, data_dir, progress)
    splits = make_splits(section, corpus.identities, data_dir)
    count = measure.loss_documents
    held_out = [corpus[place] for place in splits.held_out[:count]]
    texts = Encoder(encoder.tokenizer, encoder.template, "pretrain")
    parts = {
        "validation_loss": held_out or encoder(splits.validation[:count]),
        "target_loss": encoder(splits.test[:count]),
        "source_loss": texts(splits.source_text[:count]),
    }
    documents = {
        name: documents_of(encoded, encoder.tokenizer, measure.loss_tokens)
        for name, encoded in parts.items()
        if encoded
    }
    if "kl" in measure.forgetting and "target_loss" in documents:
        documents["kl"] = documents["target_loss"]
    return StudyData(Subset(corpus, splits.train), documents, splits.fingerprint)


def _corpus(
    section: DataSection,
    budget: BudgetSection,
    encoder: Encoder,
    folder: Path,
    data_dir: Path | None,
    progress: Progress,
) -> Corpus:
    """The training examples as tokens on the disk."""
    source, enough, count = section.train, None, inf
    if is_endless(source, data_dir):
        if budget.tokens is None:
            raise too_large(source)
        further = section.validation_rows if section.validation is None else 0
        enough = Enough(budget.tokens[-1], further)
    path = source_file(source, data_dir)
    file = None
    if path is not None:
        # A folder or a missing file is told by whoever reads it.
        status = path.stat() if path.is_file() else None
        file = [str(path.resolve()), status.st_size, status.st_mtime_ns] if status else [str(path)]
        count = count_rows(path)
    if source.limit is not None:
        count = min(count, source.limit)
    identity = {
        "source": source.model_dump(mode="json"),
        "file": file,
        "enough": [enough.tokens, enough.further] if enough else None,
        **encoder.identity,
    }
    return write_corpus(
        folder,
        identity,
        stream_examples(source, data_dir),
        encoder.to_learn,
        vocabulary=len(encoder.tokenizer),
        masked=encoder.regime == "instruct",
        count=count,
        enough=enough,
        progress=progress,
    )


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
