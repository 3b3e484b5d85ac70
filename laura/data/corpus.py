"""Tokenised examples in a folder: as many as the disk holds, read through memory maps.

    FOLDER/
      corpus.json     what it was made of, and how much it holds; written last
      state.json      how far the writing has come, while it goes on
      tokens.bin      token ids of one example after the other, 2 or 4 bytes each
      learnt.bin      1 for a supervised token; absent where all but the first are
      records.bin     of each example: end in tokens, row number, supervised bytes
      digests.bin     of each example: three SHA-256 (content, normalised, prompt)

Writing that is killed goes on after the last example that `state.json` counts.
An example takes its tokens and 120 bytes on the disk, and no memory.

What takes long is tokenised by several processes. One reads the examples and writes them in
their order, so the files are the same whoever made the tokens.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from math import inf
from pathlib import Path
from typing import IO, Any

import numpy as np

from laura.data.examples import Example
from laura.data.processes import map_in_order
from laura.data.templates import Encoded
from laura.results.errors import DataError, StoreError
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults, read_json, write_json

FORMAT = 1  # counts up when the same examples would give other tokens or digests
CHUNK = 500  # examples tokenised between two signs of progress,
CHUNK_CHARACTERS = 1 << 20  # fewer where they are long
ALONE_SECONDS = 5.0  # of tokenising before other processes are started
MOST_WORKERS = 32  # reading and writing take a thirtieth of the time, and are done by one
STATE_SECONDS = 20.0  # at most so much work is done again after a kill
RECORD = np.dtype([("end", "<i8"), ("index", "<i8"), ("bytes", "<i8")])
DIGEST_BYTES = 32
EXAMPLE_BYTES = RECORD.itemsize + 3 * DIGEST_BYTES

Encode = Callable[[list[Example]], list[Encoded]]


@dataclass(frozen=True)
class Enough:
    """When an endless source has been read far enough.

    Attributes:
        tokens: Read this many tokens,
        further: and this many examples more, to be held out.
    """

    tokens: int
    further: int


@dataclass(frozen=True)
class Identity:
    """By what an example is told from others; see `Example` for the digests."""

    index: int
    digest: str
    normal_digest: str
    prompt_digest: str


class Corpus(Sequence[Encoded]):
    """A finished corpus; examples are read from the disk when they are asked for.

    Args:
        folder: Where `write_corpus` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / "corpus.json")["facts"]
        self._records = np.memmap(folder / "records.bin", RECORD, "r")
        self._tokens = np.memmap(folder / "tokens.bin", facts["dtype"], "r")
        masked = facts["masked"]
        self._learnt = np.memmap(folder / "learnt.bin", np.bool_, "r") if masked else None
        self.identities: Sequence[Identity] = _Identities(folder, self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: int) -> Encoded:  # type: ignore[override]
        return self.part(place, 0, None)

    def part(self, place: int, first: int, last: int | None) -> Encoded:
        """Tokens `first` to `last` of an example; of the others, nothing is read."""
        if not 0 <= place < len(self):
            raise IndexError(f"example {place} of {len(self)}")
        start = int(self._records["end"][place - 1]) if place else 0
        end, index, size = (int(number) for number in self._records[place])
        wanted = slice(start + first, end if last is None else min(start + last, end))
        ids = self._tokens[wanted].tolist()
        if self._learnt is not None:
            return Encoded(index, ids, self._learnt[wanted].tolist(), size)
        learnt = [True] * len(ids)
        if first == 0:
            learnt[:1] = [False]
        return Encoded(index, ids, learnt, size)

    def marks(self, place: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tokens of an example are supervised, (T,); the tokens are not read for it."""
        start = int(self._records["end"][place - 1]) if place else 0
        end = int(self._records["end"][place])
        if self._learnt is not None:
            return self._learnt[start:end]
        learnt = np.ones(end - start, np.bool_)
        learnt[:1] = False
        return learnt


class Subset(Sequence[Encoded]):
    """Some examples of a corpus, by their places in it."""

    def __init__(self, whole: Corpus, places: Sequence[int]) -> None:
        self._whole, self._places = whole, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Encoded:  # type: ignore[override]
        return self._whole[self._places[place]]

    def part(self, place: int, first: int, last: int | None) -> Encoded:
        """As `Corpus.part`."""
        return self._whole.part(self._places[place], first, last)

    def marks(self, place: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """As `Corpus.marks`."""
        return self._whole.marks(self._places[place])


def token_type(vocabulary: int) -> np.dtype[Any]:
    """How a token id is written, with so many of them."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def write_corpus(
    folder: Path,
    identity: dict[str, Any],
    examples: Iterator[Example],
    encode: Encode,
    *,
    vocabulary: int,
    masked: bool,
    count: Callable[[], float] = lambda: inf,
    enough: Enough | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
) -> Corpus:
    """Tokenise examples into a folder, continuing or reusing what stands there.

    Args:
        folder: The corpus's own folder.
        identity: What determines the tokens; whatever stands there and was made
            of something else is written anew.
        examples: Read in order, and no further than needed.
        encode: Tokens of some examples, one `Encoded` each; with several workers it is pickled.
        vocabulary: Token ids are below it.
        masked: Whether some tokens besides the first are not supervised.
        count: Says how many examples there are, where that is known; asked only
            when there is something to do.
        enough: When to stop reading; None reads all.
        workers: Processes that tokenise once it has taken `ALONE_SECONDS`; 1 for this one alone.
        progress: Where to report.

    Raises:
        DataError: there is no example, or what `examples` and `encode` raise.
        StoreError: the disk is full or the folder cannot be written.
    """
    done = folder / "corpus.json"
    dtype = token_type(vocabulary)
    facts = {"format": FORMAT, "identity": identity, "dtype": dtype.str, "masked": masked}
    if _stands(folder, done, facts):
        return Corpus(folder)
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
    with disk_faults(folder), _Writer(folder, facts) as writer:
        total, unit = (count(), "examples") if enough is None else (enough.tokens, "tokens")
        parts = _parts(islice(examples, writer.documents, None))
        packed = _packed_parts(parts, partial(_packed, encode, dtype, masked), workers)
        with progress.bar("tokenising", total, unit) as bar, closing(packed):
            bar.advance(writer.documents if enough is None else writer.tokens)
            try:
                while not writer.filled(enough) and (part := next(packed, None)) is not None:
                    bar.advance(writer.add(part, enough))
            except StoreError:  # a worker process has ended
                writer.save()
                raise
        writer.save()
    if not writer.documents:
        raise DataError("there are no training examples; check data.train")
    write_json(done, {"facts": facts, "documents": writer.documents, "tokens": writer.tokens})
    return Corpus(folder)


@dataclass(frozen=True)
class _Part:
    """Some examples as the files hold them; `end` counts from the first of them."""

    tokens: np.ndarray[Any, Any]
    learnt: bytes
    records: np.ndarray[Any, Any]
    digests: bytes


def _parts(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """Examples in lists that are quickly tokenised and do not fill the memory."""
    part, size = list[Example](), 0
    for example in examples:
        part.append(example)
        size += len(example.text) + sum(len(content) for _, content in example.messages)
        if len(part) == CHUNK or size >= CHUNK_CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _packed_parts(
    parts: Iterator[list[Example]], pack: Callable[[list[Example]], _Part], workers: int
) -> Generator[_Part]:
    """Each part tokenised: here at first, then by as many processes."""
    until = time.monotonic() + (ALONE_SECONDS if workers > 1 else inf)
    while time.monotonic() < until:
        if (part := next(parts, None)) is None:
            return
        yield pack(part)
    yield from map_in_order(pack, parts, min(workers, MOST_WORKERS))


def _packed(encode: Encode, dtype: np.dtype[Any], masked: bool, examples: list[Example]) -> _Part:
    encoded = encode(examples)
    digests = bytearray()
    for example, _ in zip(examples, encoded, strict=True):
        for digest in (example.digest, example.normal_digest, example.prompt_digest):
            digests += bytes.fromhex(digest).ljust(DIGEST_BYTES, b"\0")
    ends = accumulate(len(item.token_ids) for item in encoded)
    facts = zip(ends, encoded, strict=True)
    return _Part(
        np.concatenate([np.array(item.token_ids, dtype) for item in encoded]),
        b"".join(bytes(item.supervised) for item in encoded) if masked else b"",
        np.array([(end, item.index, item.supervised_bytes) for end, item in facts], RECORD),
        bytes(digests),
    )


def _stands(folder: Path, record: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What `corpus.json` or `state.json` counts, if it is of these facts and the files hold it."""
    found = read_json(record) if record.is_file() else {}
    if found.get("facts") != facts:
        return None
    for name, size in _sizes(facts, found["documents"], found["tokens"]).items():
        path = folder / f"{name}.bin"
        if not path.is_file() or path.stat().st_size < size:
            return None
    return dict(found)


def _sizes(facts: dict[str, Any], documents: int, tokens: int) -> dict[str, int]:
    """Bytes of each file of a corpus."""
    sizes = {
        "tokens": tokens * np.dtype(facts["dtype"]).itemsize,
        "records": documents * RECORD.itemsize,
        "digests": documents * 3 * DIGEST_BYTES,
    }
    return {**sizes, "learnt": tokens} if facts["masked"] else sizes


class _Writer:
    """Appends examples to the files of a corpus, and notes how far they are whole."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._folder, self._facts = folder, facts
        self._files: dict[str, IO[bytes]] = {}
        nothing: dict[str, Any] = {"documents": 0, "tokens": 0, "reached": None}
        state = _stands(folder, folder / "state.json", facts)
        if state is None:
            # Left there, it would vouch for the tokens that are written now.
            (folder / "state.json").unlink(missing_ok=True)
            state = nothing
        self.documents: int = state["documents"]
        self.tokens: int = state["tokens"]
        self._reached: int | None = state["reached"]  # documents when the tokens were enough
        self._saved = time.monotonic()

    def __enter__(self) -> _Writer:
        for name, size in _sizes(self._facts, self.documents, self.tokens).items():
            # What was written after the last state is cut off.
            self._files[name] = (self._folder / f"{name}.bin").open("r+b" if size else "wb")
            self._files[name].truncate(size)
            self._files[name].seek(size)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def filled(self, enough: Enough | None) -> bool:
        """Whether nothing more needs to be read."""
        if enough is None or self._reached is None:
            return False
        return self.documents >= self._reached + enough.further

    def add(self, part: _Part, enough: Enough | None) -> int:
        """Append examples, up to the one that is enough.

        Returns:
            How many they are, or their tokens where tokens decide what is enough.
        """
        records, count, reached = part.records.copy(), len(part.records), self._reached
        records["end"] += self.tokens
        if enough is not None:
            if reached is None and records["end"][-1] >= enough.tokens:
                first = int(np.searchsorted(records["end"], enough.tokens))
                reached = self.documents + first + 1
            if reached is not None:
                count = min(count, reached + enough.further - self.documents)
        tokens = int(part.records["end"][count - 1])
        self._files["tokens"].write(part.tokens[:tokens].tobytes())
        self._files["records"].write(records[:count].tobytes())
        self._files["digests"].write(part.digests[: count * 3 * DIGEST_BYTES])
        if "learnt" in self._files:
            self._files["learnt"].write(part.learnt[:tokens])
        self.documents += count
        self.tokens += tokens
        self._reached = reached
        if time.monotonic() - self._saved >= STATE_SECONDS:
            self.save()
        return count if enough is None else tokens

    def save(self) -> None:
        """Note that everything up to here is on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        state = {"documents": self.documents, "tokens": self.tokens, "reached": self._reached}
        write_json(self._folder / "state.json", {"facts": self._facts, **state})
        self._saved = time.monotonic()


class _Identities(Sequence[Identity]):
    def __init__(self, folder: Path, records: Any) -> None:
        self._indices = records["index"]
        with (folder / "digests.bin").open("rb") as file:
            self._digests = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> Identity:  # type: ignore[override]
        start = place * 3 * DIGEST_BYTES
        parts = self._digests[start : start + 3 * DIGEST_BYTES]
        prompt = parts[2 * DIGEST_BYTES :]
        return Identity(
            int(self._indices[place]),
            parts[:DIGEST_BYTES].hex(),
            parts[DIGEST_BYTES : 2 * DIGEST_BYTES].hex(),
            prompt.hex() if any(prompt) else "",
        )
