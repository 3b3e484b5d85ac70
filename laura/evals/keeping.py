"""An engine that keeps every answer as it comes, so that a killed measurement goes on.

    TASK.partial.jsonl   first line: what is measured; then one line an answer

An answer is known by what was asked, so whatever asks the same again is given it.
A last line that was cut off is left out. Once TASK.json stands the file is removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from laura.engine.requests import (
    FORGET,
    GenerateAnswer,
    GenerateFound,
    GenerateRequest,
    MeasuringEngine,
    ScoreAnswer,
    ScoreFound,
    ScoreRequest,
    TokenDocument,
)
from laura.results.store import disk_faults

Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Answer = TypeVar("Answer", ScoreAnswer, GenerateAnswer)


def partial_file(path: Path) -> Path:
    """Where the answers of an unfinished result at `path` stand."""
    return path.with_name(f"{path.stem}.partial.jsonl")


class Keeper:
    """A `MeasuringEngine` that keeps answers in files, one an adapter; to be used in `with`.

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
        self.kept: dict[str | None, dict[str, Any]] = {}
        self._open = ExitStack()
        self._write: dict[str | None, Callable[[dict[str, Any]], None]] = {}

    @property
    def tokenizer(self) -> Any:
        """The engine's."""
        return self.engine.tokenizer

    @property
    def encoder(self) -> Any:
        """The engine's."""
        return self.engine.encoder

    @property
    def progress(self) -> Any:
        """The engine's."""
        return self.engine.progress

    def __enter__(self) -> Keeper:
        with self._open:
            for adapter, path in self.files.items():
                self.kept[adapter] = _read(path, self.identity[adapter])
                self._write[adapter] = self._open.enter_context(
                    _written(path, self.identity[adapter], self.kept[adapter])
                )
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        known: Mapping[int, ScoreAnswer] | None = None,
        found: ScoreFound = FORGET,
    ) -> list[ScoreAnswer]:
        """As the engine's; what was kept is not computed again."""
        return self._ask(self.engine.score, ScoreAnswer, requests, known, found)

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        known: Mapping[int, GenerateAnswer] | None = None,
        found: GenerateFound = FORGET,
    ) -> list[GenerateAnswer]:
        """As the engine's; what was kept is not computed again."""
        return self._ask(self.engine.generate, GenerateAnswer, requests, known, found)

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
        known: Mapping[int, Answer] | None,
        found: Callable[[int, Answer], None],
    ) -> list[Answer]:
        keys = [_key(request) for request in requests]
        have = dict(known or {})
        for number, (request, key) in enumerate(zip(requests, keys, strict=True)):
            answer = self.kept.get(request.adapter, {}).get(key)
            if answer is not None:
                have.setdefault(number, _answer(kind, answer))

        def keep(number: int, answer: Answer) -> None:
            write = self._write.get(requests[number].adapter)
            if write is not None:
                write({"request": keys[number], "answer": dataclasses.asdict(answer)})
            found(number, answer)

        return ask(requests, known=have, found=keep)


def _key(request: ScoreRequest | GenerateRequest) -> str:
    """Hash of what is asked; the adapter is the file's."""
    value = {**dataclasses.asdict(request), "adapter": type(request).__name__}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _answer(kind: type[Answer], value: dict[str, Any]) -> Answer:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return kind(**fields)


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Answers by key, of a file that belongs to `identity`; none of any other."""
    if not path.is_file():
        return {}
    with disk_faults(path), path.open("rb") as file:
        lines = [_parsed(line) for line in file]
    if not lines or lines[0] != identity:
        return {}
    whole = [
        line for line in lines[1:] if isinstance(line, dict) and {"request", "answer"} <= set(line)
    ]
    return {line["request"]: line["answer"] for line in whole}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


@contextmanager
def _written(
    path: Path, identity: dict[str, Any], kept: Mapping[str, Any]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds a line to the file, which begins with what is kept."""
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        lines = [identity, *({"request": key, "answer": value} for key, value in kept.items())]
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        aside.replace(path)
        file = path.open("a", encoding="utf-8")

    def write(line: dict[str, Any]) -> None:
        with disk_faults(path):
            file.write(json.dumps(line) + "\n")
            file.flush()

    with file:
        yield write
