"""An engine that keeps every answer as it comes, so that a killed measurement goes on.

    TASK.partial.jsonl   first line: what is measured; then one line an answer

An answer is known by what was asked, so whatever asks the same again is given it.
A last line that was cut off is left out. Once TASK.json stands the file is removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from laura.engine.requests import (
    GenerateAnswer,
    GenerateRequest,
    MeasuringEngine,
    ScoreAnswer,
    ScoreRequest,
    TokenDocument,
)
from laura.results.store import (
    check_folder,
    content_hash,
    disk_faults,
    kept_rows,
    read_lines_gz,
    write_folder,
    write_lines_gz,
)

Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Answer = TypeVar("Answer", ScoreAnswer, GenerateAnswer)


def partial_file(path: Path) -> Path:
    """Where the answers of an unfinished result at `path` stand."""
    return path.with_name(f"{path.stem}.partial.jsonl")


def written_once(
    folder: Path,
    file: str,
    identity: dict[str, Any],
    write: Callable[[Path], list[dict[str, Any]]],
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows of what a base writes once and is read ever after, in a folder of their identity.

    Args:
        folder: Where such folders lie.
        file: Name of the rows' file in there.
        identity: What determines them.
        write: Makes them, where they do not stand; given the folder's name, beside which
            (`partial_file`) it keeps answers as they come.
        facts: For the manifest.

    Raises:
        CheckpointError: the kept rows do not match their checksums.
    """
    place = folder / content_hash(identity)[:12]
    if not place.is_dir():
        rows = write(place)
        write_folder(place, lambda aside: write_lines_gz(aside / file, rows), facts)
        with disk_faults(place):
            partial_file(place).unlink(missing_ok=True)
    check_folder(place)
    return read_lines_gz(place / file)


class Keeper:
    """An engine that keeps answers in files, one an adapter; to be used in `with`.

    Args:
        engine: Answers what is not known.
        files: Adapter to file.
        identity: Adapter to what its answers belong to; a file of anything else starts anew.
    """

    def __init__(
        self,
        engine: MeasuringEngine,
        files: Mapping[str | None, Path],
        identity: Mapping[str | None, dict[str, Any]],
    ) -> None:
        self.engine, self.files, self.identity = engine, files, identity
        self.tokenizer, self.encoder, self.progress = (
            engine.tokenizer, engine.encoder, engine.progress,
        )  # fmt: skip
        self._known: dict[str | None, dict[str, Any]] = {}
        self._keep: dict[str | None, Callable[[dict[str, Any]], None]] = {}
        self._open = ExitStack()

    def __enter__(self) -> Keeper:
        with self._open:
            for adapter, path in self.files.items():
                kept = kept_rows(path, self.identity[adapter])
                rows, self._keep[adapter] = self._open.enter_context(kept)
                self._known[adapter] = {row["request"]: row["answer"] for row in rows}
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreAnswer]:
        """As the engine's; what was kept is not computed again."""
        return self._ask(self.engine.score, ScoreAnswer, requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateAnswer]:
        """As the engine's; what was kept is not computed again."""
        return self._ask(self.engine.generate, GenerateAnswer, requests)

    def document_losses(
        self, documents: Sequence[TokenDocument], adapter: str | None = None
    ) -> list[list[float]]:
        """As the engine's; nothing is kept."""
        return self.engine.document_losses(documents, adapter)

    def _ask(
        self,
        ask: Callable[..., list[Answer]],
        kind: type[Answer],
        requests: Sequence[Request],
    ) -> list[Answer]:
        keys = [_key(request) for request in requests]
        known = {}
        for number, (request, key) in enumerate(zip(requests, keys, strict=True)):
            answer = self._known[request.adapter].get(key)
            if answer is not None:
                known[number] = _answer(kind, answer)

        def found(number: int, answer: Answer) -> None:
            row = {"request": keys[number], "answer": dataclasses.asdict(answer)}
            self._keep[requests[number].adapter](row)

        return ask(requests, known=known, found=found)


def _key(request: ScoreRequest | GenerateRequest) -> str:
    """Hash of what is asked; the adapter is the file's."""
    value = {**dataclasses.asdict(request), "adapter": type(request).__name__}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _answer(kind: type[Answer], value: dict[str, Any]) -> Answer:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return kind(**fields)
