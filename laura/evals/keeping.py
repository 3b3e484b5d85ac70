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
from contextlib import ExitStack, closing
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
from laura.results.store import disk_faults

Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Answer = TypeVar("Answer", ScoreAnswer, GenerateAnswer)


def partial_file(path: Path) -> Path:
    """Where the answers of an unfinished result at `path` stand."""
    return path.with_name(f"{path.stem}.partial.jsonl")


class ResumableLines:
    """A JSON Lines file of answers by key, which a process that follows a killed one reads.

    Args:
        path: The file; it begins anew with what is kept of it.
        identity: What the answers belong to; of a file of anything else none is kept.

    Attributes:
        kept: Answers of before, by key.

    Raises:
        StoreError: the file cannot be read or written.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.kept = self._read(identity)
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.new")
            lines = [identity, *(_line(key, answer) for key, answer in self.kept.items())]
            aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            aside.replace(path)
            self._file = path.open("a", encoding="utf-8")

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer, at once."""
        with disk_faults(self.path):
            self._file.write(json.dumps(_line(key, answer)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """No more answers."""
        self._file.close()

    def _read(self, identity: dict[str, Any]) -> dict[str, Any]:
        if not self.path.is_file():
            return {}
        with disk_faults(self.path), self.path.open("rb") as file:
            lines = [_parsed(line) for line in file]
        if not lines or lines[0] != identity:
            return {}
        whole = [
            one for one in lines if isinstance(one, dict) and {"request", "answer"} <= set(one)
        ]
        return {line["request"]: line["answer"] for line in whole}


def _line(key: str, answer: Any) -> dict[str, Any]:
    return {"request": key, "answer": answer}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


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
        self._lines: dict[str | None, ResumableLines] = {}
        self._open = ExitStack()

    def __enter__(self) -> Keeper:
        with self._open:
            for adapter, path in self.files.items():
                lines = closing(ResumableLines(path, self.identity[adapter]))
                self._lines[adapter] = self._open.enter_context(lines)
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
            answer = self._lines[request.adapter].kept.get(key)
            if answer is not None:
                known[number] = _answer(kind, answer)

        def found(number: int, answer: Answer) -> None:
            self._lines[requests[number].adapter].add(keys[number], dataclasses.asdict(answer))

        return ask(requests, known=known, found=found)


def _key(request: ScoreRequest | GenerateRequest) -> str:
    """Hash of what is asked; the adapter is the file's."""
    value = {**dataclasses.asdict(request), "adapter": type(request).__name__}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _answer(kind: type[Answer], value: dict[str, Any]) -> Answer:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return kind(**fields)
