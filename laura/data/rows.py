"""Rows of files with the place each stands at: JSON Lines, a JSON array, CSV or Parquet.

Which of them a file is, its name says for CSV (`.csv`, `.tsv`) and its first bytes say for the
others; all but Parquet may be gzipped. Every fault is one message with its place.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from laura.results.errors import DataError, StoreError
from laura.results.inputs import (
    MOST_ARRAY_BYTES,
    MOST_LINE_BYTES,
    bounded_lines,
    bounded_whole,
    open_regular,
)

Placed = tuple[str, dict[str, Any]]
"""Where a row stands, in words, and the row."""
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
GZIP_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
MARK = b"\xef\xbb\xbf"
PARQUET_ROWS = 16  # read at once: each may be as long as a line


def files_of(path: Path) -> list[Path]:
    """The files of rows that a path means: it, all below a folder, or those that match a pattern.

    In the order of their names, in which their rows are numbered; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    try:
        folder = path.is_dir()
    except (OSError, ValueError):  # no file can be called so, as reading it tells
        return [path]
    if folder:
        # Those that glob finds are not hidden.
        found = glob.iglob(f"{glob.escape(str(path))}/**", recursive=True)
        files = [Path(name) for name in found if ending(Path(name)) in ENDINGS]
    elif matches(path):
        files = [Path(name) for name in glob.iglob(str(path), recursive=True)]
    else:
        return [path]
    if files := sorted(file for file in files if file.is_file()):
        return files
    raise DataError(f"{path} holds no file of rows ({', '.join(ENDINGS)}); check the path")


def matches(path: Path) -> bool:
    """Whether a path is no file but a pattern, as `part-*.parquet`, which something matches."""
    name = str(path)
    with suppress(OSError, ValueError):  # a name that no file can have
        found = glob.has_magic(name) and not path.exists()
        return found and any(True for _ in glob.iglob(name, recursive=True))
    return False


def read_rows(path: Path) -> Iterator[Placed]:
    """Rows of a file, or of several one after the other, each a mapping of its fields.

    Blank lines are passed over. An array is read whole before its first row comes.

    Args:
        path: A file, a folder or a pattern; see `files_of`.

    Raises:
        DataError: the file is missing (with the nearest names), unreadable, too large, broken,
            not UTF-8, or a row is not an object.
    """
    for file in files_of(path):
        yield from _rows(file)


def _rows(path: Path) -> Iterator[Placed]:
    with _opened(path) as (kind, stream, packed):
        if kind == "parquet":
            with _parquet(path, stream) as table:
                yield from _parquet_rows(path, table)
        elif kind == "array":
            yield from _array_rows(path, bounded_whole(stream, path, MOST_ARRAY_BYTES, packed))
        elif kind == "table":
            lines = bounded_lines(stream, path, packed=packed)
            yield from _table_rows(path, lines, DELIMITERS[ending(path)])
        else:
            for number, line in _full_lines(bounded_lines(stream, path, packed=packed)):
                place = f"{path}, line {number}"
                yield _object(_value(line, place), place)


def count_rows(path: Path) -> int:
    """How many `read_rows` gives; what JSON Lines hold is not checked, which makes it quick.

    Raises:
        DataError: a file cannot be read.
    """
    return sum(map(_count, files_of(path)))


def _count(path: Path) -> int:
    with _opened(path) as (kind, stream, packed):
        if kind == "lines":
            return sum(1 for _ in _full_lines(bounded_lines(stream, path, packed=packed)))
        if kind == "parquet":
            with _parquet(path, stream) as table:
                return int(table.metadata.num_rows)
    return sum(1 for _ in _rows(path))


def ending(path: Path) -> str:
    """The ending of a file's name that tells its format: `.csv` of `pairs.csv.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


Kind = Literal["lines", "array", "table", "parquet"]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Kind, Any, io.BufferedReader | None]]:
    """What kind of file it is, what is read, and the packed file below where there is one.

    What goes wrong with it becomes a message on its data.
    """
    try:
        with open_regular(path) as file:
            if file.peek(4).startswith(PARQUET_MAGIC):
                yield "parquet", file, None
                return
            compressed = file.peek(2).startswith(GZIP_MAGIC)
            if path.suffix == ".gz" and not compressed and file.peek(1):
                raise DataError(
                    f"{path} ends in .gz but is not gzipped; rename it to .jsonl, or compress it"
                )
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            if stream.peek(3).startswith(MARK):
                stream.read(len(MARK))
            kind: Kind = "lines"
            if ending(path) in DELIMITERS:
                kind = "table"
            elif stream.peek(64).lstrip().startswith(b"["):
                kind = "array"
            yield kind, stream, file if compressed else None
    except FileNotFoundError as error:
        raise DataError(missing_file(path)) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is a broken gzip file ({error}); fetch or write it again"
        ) from error
    except StoreError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def _full_lines(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _array_rows(path: Path, content: bytes) -> Iterator[Placed]:
    for number, value in enumerate(_value(content, str(path))):
        yield _object(value, f"{path}, row {number}")


def _table_rows(path: Path, lines: Iterator[bytes], delimiter: str) -> Iterator[Placed]:
    """Rows of a table whose first line names its columns; every cell is a text."""
    csv.field_size_limit(MOST_LINE_BYTES)
    texts = (_text(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1))
    cells = csv.reader(texts, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for row in cells:
            place = f"{path}, line {cells.line_num}"
            if not row:
                continue
            if names is None:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names) or not all(names):
                    raise DataError(f"{place}: names of columns must differ, came {', '.join(row)}")
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{place}: has {len(row)} cells, but there are {len(names)} columns "
                    f"({', '.join(names)}); put a cell that holds {delimiter!r} into quotes"
                )
            yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {cells.line_num}: is no row of a table ({error}); quote cells that hold "
            f"{delimiter!r}, a quote or a line break"
        ) from error


@contextmanager
def _parquet(path: Path, file: io.BufferedReader) -> Iterator[Any]:
    """A file as pyarrow has it, and what it finds wrong as a message."""
    import pyarrow
    from pyarrow import parquet

    try:
        yield parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"{path} is a broken Parquet file ({reason}); write it again") from error


def _parquet_rows(path: Path, table: Any) -> Iterator[Placed]:
    number = 0
    for batch in table.iter_batches(PARQUET_ROWS):
        if batch.nbytes > PARQUET_ROWS * MOST_LINE_BYTES:
            raise DataError(f"{path}: rows from {number} on are longer than a row may be")
        for row in batch.to_pylist():
            yield f"{path}, row {number}", row
            number += 1


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: is not UTF-8 (byte {error.start + 1} of it); save the file as UTF-8"
        ) from error


def _value(content: bytes, place: str) -> Any:
    text = _text(content, place)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise DataError(
            f"{place}: is not JSON ({reason}); the file must be JSON Lines, one object a line, or "
            "an array of objects"
        ) from error


def _object(value: object, place: str) -> Placed:
    if not isinstance(value, dict):
        raise DataError(
            f'{place}: must be a JSON object such as {{"text": ...}}, came {kind_of(value)}'
        )
    return place, value


def kind_of(value: object) -> str:
    """What a value is called in messages."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def shortened(value: object) -> str:
    """A value in at most forty characters."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def field_names(row: Mapping[Any, Any]) -> str:
    """The fields of a row, the first dozen of them."""
    names = [shortened(name) for name in list(row)[:12]]
    return ", ".join(names) + (", ..." if len(row) > 12 else "") if names else "(none)"


def missing_file(path: Path) -> str:
    """Message for a file that is not there, with the nearest names in its folder."""
    folder = path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        return f"{path} does not exist, nor does its folder; check the path"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if ending(Path(name)) in ENDINGS][:3]
    hint = f"nearest there: {', '.join(near)}" if near else "its folder holds no file of rows"
    return f"{path} does not exist; {hint}"
