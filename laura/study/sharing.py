"""Several commands on one study folder: who sets it up, and who does which run.

All of it is `flock`: a lock belongs to an open file, is inherited by worker processes
and goes with the last process that holds it, however it ends. So nothing has to be
judged dead, and what a killed command had begun is free to be taken over. Between
machines it works as far as their shared file system carries `flock` (NFS does since
Linux 2.6.12; Lustre where it is mounted so); a worker on another machine inherits
nothing, so it takes the study's lock itself, and sees by a beacon that it is the one.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from laura.results.errors import StoreError
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults

LOCK = ".lock"
BUSY = "busy"
WAIT_SECONDS = 0.5


class StudyLock:
    """A command's hold on a study folder; to be used in `with`.

    The first command holds it alone until the study is set up, then shares it with
    every further one.

    Args:
        folder: The study folder, made if it is not there.
        progress: Where waiting is reported.

    Attributes:
        alone: Whether nobody else works there, so that the study is to be set up.
        file: The open file, for worker processes to inherit.

    Raises:
        StoreError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path, progress: Progress = SILENT) -> None:
        self._folder, self._progress = folder, progress
        self.alone = False

    def __enter__(self) -> StudyLock:
        self._file = _opened(self._folder / LOCK)
        words = f"another laura process sets up {self._folder}; waiting"
        try:
            while not self._taken():
                if words:
                    self._progress.say(words)
                words = ""
                time.sleep(WAIT_SECONDS)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def file(self) -> int:
        """Number of the open file that holds the lock."""
        return self._file.fileno()

    def share(self) -> None:
        """Let further commands in."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def _taken(self) -> bool:
        self.alone = try_lock(self._file)
        return self.alone or try_lock(self._file, fcntl.LOCK_SH)


@contextmanager
def beacon(folder: Path) -> Iterator[Path]:
    """A fresh file in a study folder, held while the block lasts: workers elsewhere look for it.

    Args:
        folder: The study folder, which the caller's command holds open.
    """
    # Named as half-written files are, so that whoever sets up next clears it after a kill.
    path = folder.absolute() / f".seats.{uuid4().hex[:8]}"
    with _opened(path) as file:
        try_lock(file)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def joined(place: Path) -> Iterator[None]:
    """A hold on a study of one's own, beside that of a command on another machine.

    Args:
        place: The command's `beacon`.

    Raises:
        StoreError: the folder is another one here, or locks do not reach here.
    """
    if not place.is_file():
        raise StoreError(
            f"{place.parent} is not the command's study folder here: it must lie on a file system "
            "that all machines share, under one path; choose it with --out"
        )
    with _opened(place.parent / LOCK) as study, _opened(place) as token:
        # In this order: while its command lives nobody sets up anew, and then our hold stands.
        if not try_lock(study, fcntl.LOCK_SH) or try_lock(token):
            raise StoreError(
                f"locks in {place.parent} are not seen from machine to machine, so two could not "
                "be kept apart; mount it with flock (Lustre: -o flock), or choose another --out"
            )
        yield


@contextmanager
def claimed(place: Path) -> Iterator[bool]:
    """Whether this process alone holds a place now, while the block lasts.

    Args:
        place: A lock file; its folder is made if it is not there.
    """
    with _opened(place) as file:
        yield try_lock(file)


def is_taken(place: Path) -> bool:
    """Whether somebody holds a place now; nothing is made where there is none."""
    if not place.is_file():
        return False
    with _opened(place) as file:
        return not try_lock(file)


@contextmanager
def held(place: Path, words: str = "", progress: Progress = SILENT) -> Iterator[None]:
    """Hold a place alone while the block lasts, after whoever holds it now.

    Args:
        place: A lock file; its folder is made if it is not there.
        words: What is said if it must be waited for.
        progress: Where.
    """
    with _opened(place) as file:
        if not try_lock(file):
            if words:
                progress.say(words)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file unless another one's lock stands against it.

    Raises:
        StoreError: the file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"the file system of {file.name} has no locks ({error.strerror}), so two commands "
            "could not be kept apart; choose a folder on another one with --out"
        ) from error
    return True


def _opened(path: Path) -> IO[str]:
    # Reading and writing: NFS wants the one for a shared, the other for an exclusive lock.
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
