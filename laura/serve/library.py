"""The adapters folder: what lies in it, what is served of it, and files an engine may load.

Names come from listing the folder, never from a request: a request only looks one up. What
was checked is remembered until a file changes, so that asking again costs a few calls of
`stat`. Every method may be called from any thread. Which of the adapters that fit are served
is judged by what is recorded of them (`Policy`).
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from laura.models import adapter_files
from laura.models.adapter_files import (
    CONFIG,
    BaseFacts,
    Bounds,
    Outline,
    marks,
    outline,
    read_through,
)
from laura.models.lora import LoraSettings
from laura.models.safe_files import FileMark, OpenFolder, UnreadableError, printable
from laura.models.signatures import PublicKey
from laura.results.errors import AdapterError, LauraError, StoreError, UsageError
from laura.results.schema import Record
from laura.serve.auth import NAME_PATTERN
from laura.serve.engines import AdapterFiles

Unrecorded = Literal["allow", "warn", "refuse"]
Action = Literal["warn", "refuse"]
MODEL_CONFIG = "config.json"
MOST_NOTES = 20
# A file that changes twice within a tick of the file system's clock keeps its times.
TICK_NS = 100_000_000


class UnknownAdapterError(LauraError, LookupError):
    """The library has no adapter of this name."""


class AdapterRefusedError(AdapterError):
    """An adapter is not served; the message says why and names no path."""


@dataclass(frozen=True)
class PolicyVerdict:
    """What a policy says of an adapter.

    Attributes:
        refused: Why it is not served; None where it is.
        warnings: What its users should know.
    """

    refused: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policy:
    """Conditions on an adapter's record and signature.

    Attributes:
        max_forgetting: Most that may have been forgotten, in the unit of the record (0.02 of
            a share). The upper end of the record's interval counts, not its value alone: an
            adapter measured on few items must not pass by luck. None for no bound.
        unrecorded: What to do with an adapter that has no `laura.json`.
        action: What to do with one that breaks the bound.
        key: Whose signature every adapter must carry; None where it needs none.

    Raises:
        UsageError: the bound is not finite.
    """

    max_forgetting: float | None = None
    unrecorded: Unrecorded = "warn"
    action: Action = "refuse"
    key: PublicKey | None = None

    def __post_init__(self) -> None:
        if self.max_forgetting is not None and not math.isfinite(self.max_forgetting):
            raise UsageError(f"max_forgetting is {self.max_forgetting}; give a finite number")

    def judge(self, record: Record | None) -> PolicyVerdict:
        """Judge an adapter by its record; None where it has none."""
        if record is None:
            return self._of_unrecorded()
        found, bound = record.forgetting, self.max_forgetting
        low, high = found.interval
        if not low <= found.value <= high:
            return PolicyVerdict(
                f"its laura.json contradicts itself: forgetting of {found.value:+.3g} lies "
                f"outside its own interval, {low:+.3g} to {high:+.3g}; write it again with "
                "`laura recommend STUDY --adapter DIR`"
            )
        if bound is None or high <= bound:
            return PolicyVerdict()
        sure = "forgot more than" if low > bound else "may have forgotten more than"
        return self._broken(
            f"it {sure} --max-forgetting {bound:g} allows: the upper end of the interval, "
            f"{high:+.3g}, is above it (forgetting {found.value:+.3g} {found.unit}, "
            f"{found.level:.1%} interval {low:+.3g} to {high:+.3g}, on {', '.join(found.tasks)})"
        )

    def _of_unrecorded(self) -> PolicyVerdict:
        why = "it has no laura.json, so what it learned and forgot is not known"
        if self.max_forgetting is not None:
            why += f" and --max-forgetting {self.max_forgetting:g} cannot be checked"
        if self.unrecorded == "refuse":
            return PolicyVerdict(f"{why}; `laura recommend STUDY --adapter DIR` writes one")
        return PolicyVerdict(warnings=(why,) if self.unrecorded == "warn" else ())

    def _broken(self, why: str) -> PolicyVerdict:
        return PolicyVerdict(why) if self.action == "refuse" else PolicyVerdict(warnings=(why,))


@dataclass(frozen=True)
class Entry:
    """What is known of an adapter.

    Attributes:
        name: Its folder's name.
        refused: Why it is not served; None where nothing is known against it.
        record: Its `laura.json`; None where it has none, or where it was refused before.
        warnings: What its users should know.
        rank: Largest rank of a module; 0 where it was refused before.
        bytes: Size of its weights; 0 likewise.
        created: When its weights were last changed, seconds since 1970; 0 likewise.
    """

    name: str
    refused: str | None = None
    record: Record | None = None
    warnings: tuple[str, ...] = ()
    rank: int = 0
    bytes: int = 0
    created: int = 0


class _FoundFolder:
    """An adapter in the folder, with what its checks have given so far."""

    def __init__(self, name: str, folder: Path, refused: str | None) -> None:
        self.name, self.folder, self.by_name = name, folder, refused
        self.lock = threading.Lock()
        """Held for a moment, around what is known; not while the weights are read."""
        self.forget()

    def forget(self) -> None:
        """Nothing is known any more."""
        self.marks: tuple[FileMark | None, ...] | None = None
        self.settled = False
        self.outline: Outline | None = None
        self.files: AdapterFiles | None = None
        self.entry = Entry(self.name, self.by_name)

    def keep(
        self, known: Outline, files: AdapterFiles | None = None, refused: str | None = None
    ) -> None:
        """Remember what reading all of it gave, if it has not changed since."""
        with self.lock:
            if self.outline is known:
                self.files, self.entry = files, replace(self.entry, refused=refused)


class Library:
    """The adapters of one folder: its direct subfolders, and the folder itself if it is one.

    Args:
        folder: The adapters folder; None for none. It may be a link; nothing in it may.
        base: What is served.
        max_rank: Largest rank of a module that is accepted.
        max_bytes: Largest file of weights that is accepted.
        policy: Conditions on the records.

    Raises:
        StoreError: the folder cannot be read.
    """

    def __init__(
        self,
        folder: Path | None,
        base: BaseFacts,
        *,
        max_rank: int = 256,
        max_bytes: int = 2 * 1024**3,
        policy: Policy | None = None,
    ) -> None:
        self.base, self.policy = base, policy or Policy()
        self.bounds = Bounds(max_rank=max_rank, max_bytes=max_bytes)
        self.notes: tuple[str, ...] = ()
        """What lies in the folder and cannot be offered, a sentence each."""
        self._folder = folder.resolve() if folder else None
        self._found: dict[str, _FoundFolder] = {}
        self.rescan()

    def names(self) -> list[str]:
        """Every adapter found, sorted; those that are refused too."""
        return sorted(self._found)

    def entry(self, name: str) -> Entry:
        """What is known of an adapter; reads no weights but their header.

        Raises:
            UnknownAdapterError: there is none of this name.
        """
        found = self._get(name)
        with found.lock:
            self._look(found)
            return found.entry

    def open(self, name: str) -> AdapterFiles:
        """Check an adapter through, so that an engine may load it (`read_checked`).

        Reads all of it (a second or two per GB) the first time and after a change: not for the
        event loop's own thread.

        Raises:
            UnknownAdapterError: there is none of this name.
            AdapterRefusedError: it is not served.
        """
        found = self._get(name)
        with found.lock:
            self._look(found, whole=True)
            known, refused, files = found.outline, found.entry.refused, found.files
        if files is not None:
            return files
        if known is None or refused is not None:
            raise AdapterRefusedError(refused or f"{name} is not read")
        try:
            files = self._read(found, known)
        except AdapterError as error:
            refused = printable(str(error))
            # The system's refusal, unlike the files' own faults, may be over next time.
            if not isinstance(error, UnreadableError):
                found.keep(known, refused=refused)
            raise AdapterRefusedError(refused) from error
        found.keep(known, files=files)
        return files

    def rescan(self) -> None:
        """See which adapters there are; what is known of unchanged ones stays.

        Raises:
            StoreError: the folder cannot be read; what was known stays.
        """
        if self._folder is None:
            return
        places, notes = _adapters_in(self._folder)
        known = self._found
        taken = {name for name, found in known.items() if found.by_name is None}
        by_fold = defaultdict(list)
        for name in places:
            by_fold[name.casefold()].append(name)
        scanned = {}
        for name, folder in places.items():
            refused = self._refused_name(name, by_fold[name.casefold()], taken)
            before = known.get(name)
            kept = before is not None and (before.folder, before.by_name) == (folder, refused)
            scanned[name] = before if before and kept else _FoundFolder(name, folder, refused)
        self._found, self.notes = scanned, notes

    def _refused_name(self, name: str, alike: list[str], taken: set[str]) -> str | None:
        if name.casefold() == self.base.name.casefold():
            return f"{name} has the name of the base; rename its folder"
        others = [other for other in alike if other != name]
        # One that was served before others came stays: they may be there to be mistaken for it.
        if others and not (name in taken and taken.isdisjoint(others)):
            return (
                f"{name} differs from {', '.join(others[:3])} in upper and lower case only; "
                "rename one of the folders"
            )
        return None

    def _get(self, name: str) -> _FoundFolder:
        found = self._found.get(name)
        if found is None:
            raise UnknownAdapterError(f"there is no adapter '{printable(name, 128)}'")
        return found

    def _look(self, found: _FoundFolder, whole: bool = False) -> None:
        """Bring the outline up to date; what is known of the whole is dropped if it changed.

        What was seen within a tick of its last change may have changed again unseen: where
        the whole is wanted, it is not relied on.
        """
        if found.by_name is not None:
            return
        current: tuple[FileMark | None, ...] = ()
        now = time.time_ns()
        try:
            with OpenFolder(found.folder, Path(found.name)) as folder:
                current = marks(folder)
                if current == found.marks and (found.settled or not whole):
                    return
                found.forget()
                found.outline = known = outline(folder, self.base, self.bounds, self.policy.key)
            judged = self.policy.judge(known.record)
            refused = judged.refused and printable(f"{found.name}: {judged.refused}")
            warnings = tuple(map(printable, known.warnings + judged.warnings))
            found.entry = Entry(
                found.name, refused, known.record, warnings,
                known.settings.largest_rank, known.bytes, known.created,
            )  # fmt: skip
        except AdapterError as error:
            found.forget()
            found.entry = Entry(found.name, printable(str(error)))
            if isinstance(error, UnreadableError):
                return
        found.marks = current
        found.settled = all(mark is None or mark[4] < now - TICK_NS for mark in current)

    def _read(self, found: _FoundFolder, known: Outline) -> AdapterFiles:
        with OpenFolder(found.folder, Path(found.name)) as folder:
            digest = read_through(folder, known, self.bounds)
        rank = known.settings.largest_rank
        return AdapterFiles(found.name, found.folder, digest, rank, known.bytes)


def _adapters_in(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Adapters by name, and what looks like one but cannot be named; opens no file."""
    places: dict[str, Path] = {}
    notes = []
    candidates, models = _look_around(root)
    for name, folder in candidates:
        if not re.fullmatch(NAME_PATTERN, name):
            notes.append(
                f"'{printable(name, 140)}' is no name of an adapter: letters, digits, dot, "
                "hyphen and underscore are allowed, 128 at most, a letter or digit first; "
                "rename the folder"
            )
        elif name in places:
            notes.append(f"{name} is there twice, as the library itself and in it; rename one")
        else:
            places[name] = folder
    # A study's winner may be one; silence would look like no adapters.
    notes += [
        f"'{printable(folder.name, 140)}' holds a whole model, not an adapter; serve it as a base "
        f"of its own: laura serve {printable(str(folder), 200)}"
        for folder in models
    ]
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"and {len(notes) - MOST_NOTES} more of this kind"]
    return places, tuple(notes)


def _look_around(root: Path) -> tuple[list[tuple[str, Path]], list[Path]]:
    """What may be adapters, with their names, and folders that hold whole models."""
    try:
        with os.scandir(root) as entries:
            found = [(entry.name, Path(entry.path), entry) for entry in entries]
    except OSError as error:
        raise StoreError(
            f"the adapters folder {root} cannot be read ({error.strerror}); check the path and "
            "its owner"
        ) from error
    candidates, models = [], []
    for name, folder, entry in found:
        # What a link leads to is not looked at; checking the adapter refuses it.
        if entry.is_symlink():
            candidates.append((name, folder))
        elif entry.is_dir(follow_symlinks=False):
            if _has(folder, CONFIG):
                candidates.append((name, folder))
            elif _has(folder, MODEL_CONFIG):
                models.append(folder)
    if _has(root, CONFIG):
        candidates.append((root.name, root))
    elif _has(root, MODEL_CONFIG):
        models.append(root)
    return candidates, sorted(models)


def _has(folder: Path, name: str) -> bool:
    try:
        os.lstat(folder / name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # not ours to read: found, and refused when it is looked at
        return True
    return True


def read_checked(files: AdapterFiles) -> tuple[LoraSettings, dict[str, Tensor]]:
    """Read an adapter that `Library.open` gave; see `adapter_files.read_checked`."""
    return adapter_files.read_checked(files.folder, files.name, files.digest, files.bytes)


def short_record(record: Record | None) -> dict[str, Any] | None:
    """What the page, `/v1/models` and `laura chat` show of a record, ready for JSON.

    Recipe, versions and file hashes are left out, of claims all but the verdict.

    Returns:
        `{"study", "base", "method", "arm", "learning_rate", "tokens", "learning",
        "forgetting", "scores", "claims": {ID: VERDICT}}`; None where there is no record.
    """
    if record is None:
        return None
    kept = {
        "study", "base", "method", "arm", "learning_rate", "tokens", "learning", "forgetting",
        "scores",
    }  # fmt: skip
    claims = {claim.id: claim.verdict for claim in record.claims}
    return {**record.model_dump(mode="json", include=kept), "claims": claims}
