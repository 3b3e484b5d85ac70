"""Reading JSON Lines so that every fault is one clear message with its line."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from laura.results.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON Lines file, plain or gzipped, one after the other.

    Blank lines are passed over. Whether a file is gzipped is read from its
    first bytes, not its name.

    Args:
        path: The file.

    Yields:
        Line number, counted from 1, and the row.

    Raises:
        DataError: the file is missing (with the nearest names), unreadable, a
            broken gzip, not UTF-8, or a line is not a JSON object.
    """
    for number, line in _lines(path):
        yield number, _row(path, number, line)


def count_rows(path: Path) -> int:
    """Rows of a JSON Lines file; what they hold is not checked, which makes it quick.

    Raises:
        DataError: the file cannot be read.
    """
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    try:
        with path.open("rb") as file:
            compressed = file.peek(2)[:2] == GZIP_MAGIC
            if path.suffix == ".gz" and not compressed and file.peek(1):
                raise DataError(
                    f"{path} ends in .gz but is not gzipped; rename it to .jsonl, or compress it"
                )
            lines: BinaryIO | gzip.GzipFile = gzip.open(file) if compressed else file
            for number, line in enumerate(lines, start=1):
                whole = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if whole.strip():
                    yield number, whole
    except FileNotFoundError as error:
        raise DataError(missing_file(path)) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is a broken gzip file ({error}); fetch or write it again"
        ) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; name a JSON Lines file inside it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(path)!r} cannot be read ({error}); check the path") from error


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    place = f"{path}, line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: is not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise DataError(
            f"{place}: is not JSON ({reason}); the file must be JSON Lines, one object a line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f'{place}: must be a JSON object such as {{"text": ...}}, came {kind_of(row)}'
        )
    return row


def kind_of(value: object) -> str:
    """What a JSON value is called in messages."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def missing_file(path: Path) -> str:
    """Message for a file that is not there, with the nearest names in its folder."""
    folder = path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        return f"{path} does not exist, nor does its folder; check the path"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if ".jsonl" in name][:3]
    hint = f"nearest there: {', '.join(near)}" if near else "its folder holds no JSON Lines file"
    return f"{path} does not exist; {hint}"
