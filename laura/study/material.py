"""What a study trains and measures on: encoded examples and held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.data.sources import Example
from laura.data.splits import make_splits
from laura.data.templates import Encoded, check_end_token, encode_all
from laura.errors import DataError
from laura.models.engine import TokenDocument
from laura.progress import SILENT, Progress
from laura.recipe import DataSection, MeasureSection

CHUNK = 500  # examples tokenised between two signs of progress


@dataclass(frozen=True)
class StudyData:
    """Everything a study reads, as tokens.

    Attributes:
        train: Encoded training examples.
        documents: Held-out documents by task: `validation_loss`, and where the
            recipe names their data `target_loss` (also for `kl`) and `source_loss`.
        fingerprint: Hash of the data, for run IDs.
    """

    train: list[Encoded]
    documents: dict[str, list[TokenDocument]]
    fingerprint: str


def prepare(
    section: DataSection,
    measure: MeasureSection,
    regime: Any,
    tokenizer: Any,
    data_dir: Path | None,
    progress: Progress = SILENT,
) -> StudyData:
    """Load, check, template and tokenise all data of a recipe.

    Raises:
        DataError: missing, empty, malformed or overlapping data; an answer
            whose end token would not be learnt.
    """
    splits = make_splits(section, data_dir)
    train = _encode_all(splits.train, tokenizer, section.template, regime, progress)
    if regime == "instruct":
        check_end_token(train, tokenizer)
    documents = {"validation_loss": splits.validation, "target_loss": splits.test}
    held_out = {
        name: documents_of(examples, tokenizer, section.template, regime, measure)
        for name, examples in documents.items()
    }
    held_out["source_loss"] = documents_of(
        splits.source_text, tokenizer, section.template, "pretrain", measure
    )
    if "kl" in measure.forgetting:
        held_out["kl"] = held_out["target_loss"]
    return StudyData(train, {k: v for k, v in held_out.items() if v}, splits.fingerprint)


def _encode_all(
    examples: Sequence[Example], tokenizer: Any, template: Any, regime: Any, progress: Progress
) -> list[Encoded]:
    encoded: list[Encoded] = []
    with progress.bar("tokenising", len(examples), "examples") as bar:
        for start in range(0, len(examples), CHUNK):
            part = examples[start : start + CHUNK]
            encoded += encode_all(part, tokenizer, template, regime)
            bar.advance(len(part))
    return encoded


def documents_of(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Any,
    regime: Any,
    measure: MeasureSection,
) -> list[TokenDocument]:
    """Held-out documents, cut to the recipe's length; the first ones of the data."""
    documents = []
    for encoded in encode_all(examples[: measure.loss_documents], tokenizer, template, regime):
        ids = encoded.token_ids[: measure.loss_tokens]
        supervised = encoded.supervised[: measure.loss_tokens]
        if not any(supervised):
            continue
        whole = len(ids) == len(encoded.token_ids)
        size = encoded.supervised_bytes if whole else _bytes(ids, supervised, tokenizer)
        documents.append(TokenDocument(ids, supervised, size, encoded.index))
    if examples and not documents:
        raise DataError(
            f"none of {len(examples)} held-out examples has a target within measure.loss_tokens "
            f"= {measure.loss_tokens} tokens; raise it"
        )
    return documents


def _bytes(ids: list[int], supervised: list[bool], tokenizer: Any) -> int:
    wanted = [token for token, target in zip(ids, supervised, strict=True) if target]
    return len(tokenizer.decode(wanted).encode("utf-8"))
