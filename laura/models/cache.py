"""The cache: folders that appear whole, one process at a time.

    CACHE/                 $LAURA_CACHE, else $XDG_CACHE_HOME/laura, else ~/.cache/laura
      models/NAME/         a dequantised model: config, safetensors, tokenizer, manifest.json

An entry is written aside and renamed; its manifest lists the size and SHA-256
of every file. Loading compares names and sizes, which takes no time; `laura
fetch` compares the checksums too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.results.errors import CheckpointError, StoreError
from laura.results.progress import SILENT, Progress
from laura.results.store import (
    MANIFEST,
    check_folder,
    disk_faults,
    read_json,
    remove_leftovers,
    write_folder,
)


def cache_root() -> Path:
    """The cache's folder; it need not exist yet."""
    if chosen := os.environ.get("LAURA_CACHE"):
        return Path(chosen).expanduser()
    system = os.environ.get("XDG_CACHE_HOME")
    return (Path(system).expanduser() if system else Path.home() / ".cache") / "laura"


def model_entry(name: str) -> Path:
    """Where the model of this name stands, or will stand."""
    return cache_root() / "models" / name


def is_whole(entry: Path) -> bool:
    """Whether the entry has its manifest and every file in its recorded size."""
    try:
        sizes = read_json(entry / MANIFEST)["facts"]["bytes"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (StoreError, OSError, KeyError, TypeError, AttributeError):
        return False


def is_intact(entry: Path) -> bool:
    """Whether every file of the entry matches its SHA-256 (about a second per gigabyte)."""
    try:
        check_folder(entry)
    except (CheckpointError, StoreError):
        return False
    return True


def write_entry(entry: Path, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Make an entry appear whole or not at all.

    Args:
        entry: Its folder; replaced if it exists.
        fill: Writes the files into the folder it is given.
        facts: What the manifest records about the entry's origin.

    Raises:
        StoreError: the disk is full or the cache may not be written.
    """
    recorded = dict(facts)

    def fill_and_weigh(folder: Path) -> None:
        fill(folder)
        recorded["bytes"] = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    write_folder(entry, fill_and_weigh, recorded)


@contextmanager
def locked(entry: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Hold the right to make entries; others wait, and then find theirs made.

    One lock for all entries, so that who holds it may clear away leftovers.
    """
    from filelock import FileLock, Timeout

    with disk_faults(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.parent / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            progress.say("Another process is preparing a model; waiting for it")
            lock.acquire()
    try:
        remove_leftovers(entry.parent)
        yield
    finally:
        lock.release()
