"""Files that somebody names: opened so that nothing waits, read so that nothing grows.

A name may lead to a pipe that nobody writes to, to a device without an end, or to more bytes
than there is memory. So only regular files are opened, judged by what was opened and not by
its path, which may change in between; and each kind of file has a largest size. The sizes
stand here, in bytes; what a file of strangers' weights may be is `laura.models.safe_files`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from laura.results.errors import StoreError

MOST_RECIPE_BYTES = 2**20
"""A recipe or a user's task; the longest recipe that comes with Laura has 5,000."""
MOST_TENANTS_BYTES = 16 * 2**20
"""A tenants file: some 80,000 tenants."""
MOST_CONFIG_BYTES = 2**20
"""An adapter's configuration or record, or a public key."""
MOST_HEADER_BYTES = 4 * 2**20
"""The header of an adapter's weights; a 70B model's, on every map, has 0.2 million."""
MOST_JSON_BYTES = 64 * 2**20
"""A file of a study, a model's config or index; a study of hundreds of runs has a million."""
MOST_TOKENIZER_BYTES = 256 * 2**20
"""Any other file of a model but its weights; Gemma's tokenizer has 33 million."""
MOST_LINE_BYTES = 16 * 2**20
"""A line of JSON Lines, unpacked: one example, longer than the context of any model."""
MOST_ARRAY_BYTES = 2**30
"""A JSON array of examples, unpacked: it is read whole, and takes several times as much memory."""
MOST_SAMPLES_BYTES = 2**30
"""Kept samples, unpacked."""
MOST_RATIO, FREE_BYTES = 200, 2 * 2**20
"""So often a data file may unpack its own size, once it has given so many bytes; text does 3 to
20 times, gzip can do 1,032."""
KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def strange_kind(facts: os.stat_result) -> str | None:
    """What a file is that is no regular one, such as "a pipe"; None for a regular file."""
    kind = stat.S_IFMT(facts.st_mode)
    return None if kind == stat.S_IFREG else KINDS.get(kind, "no file")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file to be read; never waits.

    Raises:
        StoreError: it is something else, or no path at all.
        OSError: the system's refusal, such as a file that is not there.
    """
    try:
        # Opening a device can do something, so it is looked at beforehand as well.
        _refuse_strange(os.stat(path), path)
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except ValueError as error:
        raise StoreError(f"{str(path)!r} is no path ({error}); check it") from error
    try:
        _refuse_strange(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_strange(facts: os.stat_result, path: str | Path) -> None:
    if kind := strange_kind(facts):
        raise StoreError(f"{path} is {kind}, not a regular file; give the path of a file")


def read_bounded(path: str | Path, most_bytes: int) -> bytes:
    """The whole of a small file.

    Raises:
        StoreError: it is no regular file, or has more bytes.
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        return rest_of(file, path, most_bytes)


def rest_of(file: io.BufferedReader, path: str | Path, most_bytes: int) -> bytes:
    """What an open file still holds; see `read_bounded`."""
    size = os.fstat(file.fileno()).st_size
    # The size is 0 for what the system makes up as it is read, and may grow meanwhile.
    content = b"" if size > most_bytes else file.read(most_bytes + 1)
    if max(size, len(content)) > most_bytes:
        raise StoreError(
            f"{path} has {max(size, len(content)):,} bytes, allowed are {most_bytes:,}; is it the "
            "file that you mean?"
        )
    return content


def bounded_lines(
    file: io.BufferedIOBase,
    path: Path,
    most_bytes: int | None = None,
    packed: io.BufferedReader | None = None,
) -> Iterator[bytes]:
    """Lines of an open file, each with its end; one line is held at a time.

    Args:
        file: Read from where it stands; unpacks as it is read, where it is packed.
        path: For messages.
        most_bytes: Of all lines; None for no bound.
        packed: The packed file below, if it may not hold far more than its own size.

    Raises:
        StoreError: a line has more than `MOST_LINE_BYTES`, or there are too many of them.
    """
    number = seen = 0
    while line := file.readline(MOST_LINE_BYTES + 1):
        number, seen = number + 1, seen + len(line)
        if len(line) > MOST_LINE_BYTES:
            raise StoreError(
                f"{path}, line {number}: has more than the {MOST_LINE_BYTES:,} bytes that a line "
                "may have; write one example a line, and split documents that are longer"
            )
        if most_bytes is not None and seen > most_bytes:
            raise StoreError(f"{path} holds more than {most_bytes:,} bytes; make it anew")
        _refuse_bomb(path, seen, packed)
        yield line


def bounded_whole(
    file: io.BufferedIOBase, path: Path, most_bytes: int, packed: io.BufferedReader | None = None
) -> bytes:
    """All of an open file, read piece by piece; see `bounded_lines`.

    Raises:
        StoreError: it has more bytes, or unpacks to far more than its size.
    """
    content = bytearray()
    while piece := file.read(2**20):
        content += piece
        if len(content) > most_bytes:
            raise StoreError(
                f"{path} holds more than {most_bytes:,} bytes; write it as JSON Lines, one object "
                "a line"
            )
        _refuse_bomb(path, len(content), packed)
    return bytes(content)


def _refuse_bomb(path: Path, seen: int, packed: io.BufferedReader | None) -> None:
    if packed is not None and seen > FREE_BYTES and seen > MOST_RATIO * packed.tell():
        raise StoreError(
            f"{path} unpacks to more than {MOST_RATIO} times its size, as text never does; if "
            "it is meant, unpack it and give the plain file"
        )
