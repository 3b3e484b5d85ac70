"""Files of strangers, read without trusting what they are.

An adapter's folder may be written to by somebody else while it is read, and may hold links,
pipes, devices or files of any size. So:

- a folder and the files in it are opened by descriptor and, unless the folder is one's own,
  never through a link, which could name a file that only this process may read, or another
  tenant's adapter;
- only regular files are opened, of a bounded size, and never so that opening can wait;
- a file is read once, front to back, never mapped into memory: one that is cut off while it
  is mapped kills the process that reads it;
- its SHA-256 is taken of the bytes as they are read, and it must not change meanwhile.

No torch. POSIX only.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.results.errors import AdapterError
from laura.results.inputs import strange_kind

FileMark = tuple[int, int, int, int, int]
"""What changes when a file does: device, inode, size, times of change."""


class UnreadableError(AdapterError):
    """The system refused to read a file now; trying again may help."""


class OpenFolder:
    """A folder that is held by its descriptor; a context manager.

    Args:
        folder: Its path. Links are followed above it.
        label: What it is called in messages; no path where they may reach a client.
        links: Whether links are followed at its end and inside it, as in a cache of the Hub.

    Raises:
        AdapterError: it is no folder.
        UnreadableError: it is not there, or may not be read.
    """

    def __init__(self, folder: Path, label: Path, links: bool = False) -> None:
        self.label, self._links = label, links
        self._flags = os.O_RDONLY | (0 if links else os.O_NOFOLLOW)
        try:
            facts = (os.stat if links else os.lstat)(folder)
            if not stat.S_ISDIR(facts.st_mode):
                kind = strange_kind(facts) or "a file"
                raise AdapterError(f"{label} is {kind}, not a folder; {_ADVICE}")
            self._descriptor = os.open(folder, self._flags | os.O_DIRECTORY)
        except OSError as error:
            raise _unreadable(label, error) from error

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def mark(self, name: str) -> FileMark | None:
        """What changes when the file changes; None where there is none."""
        try:
            return _mark(self._stat(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.label / name, error) from error

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=self._links)

    @contextmanager
    def opened(self, name: str, most_bytes: int) -> Iterator[ReadOnce]:
        """Open a file of the folder.

        Args:
            name: Without a folder.
            most_bytes: Largest size that is accepted.

        Raises:
            AdapterError: it is no regular file, or too large.
            UnreadableError: it is not there, or may not be read.
        """
        label = self.label / name
        try:
            # Opening a device can do something, so it is looked at beforehand as well.
            _check_regular(self._stat(name), label)
            descriptor = os.open(name, self._flags | os.O_NONBLOCK, dir_fd=self._descriptor)
        except OSError as error:
            raise _unreadable(label, error) from error
        try:
            facts = os.fstat(descriptor)
            _check_regular(facts, label)
            if facts.st_size > most_bytes:
                raise AdapterError(
                    f"{label} has {facts.st_size} bytes, allowed are {most_bytes}; "
                    "nothing of it was read"
                )
            yield ReadOnce(descriptor, facts, label)
        finally:
            os.close(descriptor)

    def read(self, name: str, most_bytes: int) -> tuple[bytes, str]:
        """The whole of a small file, and its SHA-256 in hexadecimal.

        Raises:
            AdapterError, UnreadableError: as `opened`; or it changed while it was read.
        """
        with self.opened(name, most_bytes) as file:
            content = bytes(file.take(file.size))
            return content, file.finish()


class ReadOnce:
    """A regular file that is read once, front to back."""

    def __init__(self, descriptor: int, facts: os.stat_result, label: Path) -> None:
        self.label, self.size, self.changed = label, facts.st_size, facts.st_mtime
        self._descriptor, self._mark = descriptor, _mark(facts)
        self._hash = hashlib.sha256()

    def take(self, count: int) -> bytearray:
        """The next bytes; the caller has compared the count with the size.

        Raises:
            AdapterError: the file ends before.
        """
        buffer = bytearray(count)
        self.fill(memoryview(buffer))
        return buffer

    def fill(self, buffer: memoryview) -> None:
        """Fill a buffer with the next bytes.

        Raises:
            AdapterError: the file ends before.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.readv(self._descriptor, [buffer[done:]])
            except OSError as error:
                raise _unreadable(self.label, error) from error
            if count == 0:
                raise changed(self.label)
            done += count
        self._hash.update(buffer)

    def finish(self) -> str:
        """SHA-256 of all of it, hexadecimal.

        Raises:
            AdapterError: the file was changed, or grew, while it was read.
        """
        if _mark(os.fstat(self._descriptor)) != self._mark:
            raise changed(self.label)
        return self._hash.hexdigest()


def changed(label: Path, when: str = "while it was read") -> UnreadableError:
    """What to say of files that are being written to."""
    return UnreadableError(
        f"{label} changed {when}; write adapters into a folder aside and rename it into place"
    )


_ADVICE = "copy the files themselves into a folder of their own"


def _check_regular(facts: os.stat_result, label: Path) -> None:
    if kind := strange_kind(facts):
        raise AdapterError(f"{label} is {kind}, not a regular file; {_ADVICE}")


def _mark(facts: os.stat_result) -> FileMark:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _unreadable(label: Path, error: OSError) -> UnreadableError:
    return UnreadableError(f"{label} cannot be read ({error.strerror})")


def strict_json(content: bytes | bytearray, label: Path) -> Any:
    """Read JSON in which nothing has two meanings.

    Raises:
        AdapterError: not UTF-8, not JSON, too deep, a key twice, or NaN or an infinity.
    """
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{label} is no usable JSON ({error!s:.200}); copy it again") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        double, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {double!r:.80} stands in it twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def printable(text: str, most: int = 600) -> str:
    """A text of a stranger on one line that cannot steer a terminal or a log, cut to a length."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
