"""Checks of one adapter's folder before an engine may see it, and reading what was checked.

Three steps, each on its own bytes:

- `outline` reads configuration, record and the header of the weights: names, shapes, ranks,
  base. A few thousand bytes, whatever the size of the weights.
- `read_through` reads everything once, in small pieces: every number is finite and small
  enough, the checksums are those of the record. It gives the digest of what it read.
- `read_checked` is for the engine: it reads both files into memory, once, and refuses what
  has another digest.

Nothing is unpickled or mapped into memory.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laura.models.adapter_files import (
    CONFIG,
    FLOATS,
    PICKLED,
    PREFIX,
    WEIGHTS,
    check_kind,
    check_modules,
    check_names,
    check_shapes,
    checked_config,
    missing_weights,
    module_names,
    peak,
    resolved,
)
from laura.models.lora import LoraSettings
from laura.results.errors import AdapterError, StoreError
from laura.results.schema import RECORD_FILE, Record, parse_record
from laura.results.store import content_hash
from laura.serve.bases import BaseFacts
from laura.serve.engines import AdapterFiles
from laura.serve.safe_files import Mark, OpenFolder, ReadOnce, changed, strict_json
from laura.serve.tensor_places import Place, read_places

MOST_TEXT_BYTES = 1024**2
# So few numbers are looked at in this thread: torch's pool is busy with answers meanwhile, and
# waiting for it made checks many times slower.
PIECE_NUMBERS = 2**15
# Float16's largest number: no weight beyond it can be served in half precision, and an update
# whose entries come near it leaves no activation finite in any.
LARGEST = 65504.0
# Letters of a name, with the dots escaped or not: such a pattern takes no time to match.
PLAIN_PATTERN = re.compile(r"\^?(?:[\w.-]|\\\.)+\$?")
SINCE = "since it was checked"


@dataclass(frozen=True)
class Bounds:
    """What a server accepts.

    Attributes:
        max_rank: Largest rank of a module.
        max_bytes: Largest file of weights.
        dora: Whether its engine can serve DoRA.
    """

    max_rank: int = 256
    max_bytes: int = 2 * 1024**3
    dora: bool = False


@dataclass(frozen=True)
class Outline:
    """What is known of an adapter before its weights are read.

    Attributes:
        settings: With targets, ranks and alphas by full module name.
        places: Where its tensors lie.
        record: Its `laura.json`; None where it has none.
        config_hash: SHA-256 of its configuration.
        bytes: Size of its weights.
        created: When its weights were last changed, seconds since 1970.
        warnings: What its users should know of its base.
    """

    settings: LoraSettings
    places: dict[str, Place]
    record: Record | None
    config_hash: str
    bytes: int
    created: int
    warnings: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return self.settings.largest_rank


def marks(folder: OpenFolder) -> tuple[Mark | None, ...]:
    """What changes when one of the adapter's files changes."""
    return tuple(folder.mark(name) for name in (CONFIG, WEIGHTS, RECORD_FILE))


def outline(folder: OpenFolder, base: BaseFacts, bounds: Bounds) -> Outline:
    """Check all of an adapter but the numbers in its weights.

    Raises:
        AdapterError: what is wrong with it, and what to do.
        UnreadableError: its files cannot be read now.
    """
    if folder.mark(CONFIG) is None:
        raise AdapterError(f"{folder.label} has no {CONFIG}; it is not a PEFT adapter folder")
    text, config_hash = folder.read(CONFIG, MOST_TEXT_BYTES)
    config = checked_config(strict_json(text, folder.label / CONFIG), folder.label)
    if folder.mark(WEIGHTS) is None:
        raise missing_weights(folder.label, folder.mark(PICKLED) is not None)
    record = _record(folder)
    warnings = _check_base(config, record, base, folder.label)
    with folder.opened(WEIGHTS, bounds.max_bytes) as file:
        places = read_places(file)
        settings = _settings(config, places, base, bounds, folder.label)
        size, created = file.size, int(file.changed)
    return Outline(settings, places, record, config_hash, size, created, warnings)


def _record(folder: OpenFolder) -> Record | None:
    if folder.mark(RECORD_FILE) is None:
        return None
    text, _ = folder.read(RECORD_FILE, MOST_TEXT_BYTES)
    try:
        return parse_record(text, folder.label / RECORD_FILE)
    except StoreError as error:
        raise AdapterError(
            f"{error!s:.400}, or delete it to have the adapter judged as one without a record"
        ) from error


def _check_base(
    config: dict[str, Any], record: Record | None, base: BaseFacts, label: Path
) -> tuple[str, ...]:
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str | None):
        raise AdapterError(f"{label / CONFIG}: base_model_name_or_path is no text; give a name")
    if record is None:
        told = f"its configuration says {named[:100]!r}" if named else "nothing is said of it"
        return (f"its base is not verified, as it has no laura.json: {told}",)
    if base.fingerprint is None:
        return ("its base is not verified, as the hash of the served base is not known",)
    if record.base.fingerprint != base.fingerprint:
        raise AdapterError(
            f"{label} was made for another base: its laura.json names {record.base.model[:100]!r} "
            f"with hash {record.base.fingerprint[:12]}, this one has {base.fingerprint[:12]}; "
            "serve it on its own base"
        )
    return ()


def _settings(
    config: dict[str, Any], places: dict[str, Place], base: BaseFacts, bounds: Bounds, label: Path
) -> LoraSettings:
    """Settings, with the cheap checks first: none takes longer than the base is large."""
    path = label / WEIGHTS
    if len(places) > 3 * len(base.linears):
        raise AdapterError(
            f"{path} holds {len(places)} tensors, more than this base's {len(base.linears)} "
            "modules can have; it was made for another base"
        )
    check_names(places, path)
    check_modules(module_names(places), base.linears, label)
    for name, place in places.items():
        check_kind(name, place.shape, place.dtype in FLOATS, place.dtype, path)
    _check_patterns(config.get("alpha_pattern"), len(base.linears), label)
    shapes = {name: place.shape for name, place in places.items()}
    settings = resolved(config, shapes, label)
    if settings.dora and not bounds.dora:
        raise AdapterError(
            f"{label} has trained lengths (DoRA), which this server's engine cannot serve; "
            "merge it into its base"
        )
    for name in settings.targets:
        rank, _ = settings.for_module(name)
        if rank > bounds.max_rank:
            raise AdapterError(
                f"{label}: rank {rank} of {name} is above this server's limit of "
                f"{bounds.max_rank}; lower the rank or raise the limit"
            )
    check_shapes(settings, shapes, base.linears, label)
    return settings


def _check_patterns(patterns: Any, modules: int, label: Path) -> None:
    """Refuse patterns that could take for ever to match; `resolved` looks at all else."""
    if not isinstance(patterns, dict):
        return
    if len(patterns) > max(modules, 64):
        raise AdapterError(
            f"{label / CONFIG}: alpha_pattern has {len(patterns)} entries, more than the base's "
            f"{modules} modules; name each module once"
        )
    strange = next((key for key in patterns if not PLAIN_PATTERN.fullmatch(key)), None)
    if strange is not None or any(len(key) > 256 for key in patterns):
        raise AdapterError(
            f"{label / CONFIG}: alpha_pattern has {strange or 'a long key'!r:.80}; a server takes "
            "names, no expressions, as some take for ever to match; write the module names out"
        )


def read_through(folder: OpenFolder, known: Outline, bounds: Bounds) -> str:
    """Read an adapter once, piece by piece, and check what `outline` did not.

    Args:
        folder: The adapter's.
        known: What `outline` found.
        bounds: As for `outline`.

    Returns:
        The digest of configuration and weights.

    Raises:
        AdapterError: a number is not finite or too large, or the record belongs to other bytes.
        UnreadableError: the files changed in between, or cannot be read now.
    """
    label = folder.label / WEIGHTS
    with folder.opened(WEIGHTS, bounds.max_bytes) as file:
        if read_places(file) != known.places:
            raise changed(label)
        peaks = _peaks(file, known.places, label)
        weights_hash = file.finish()
    _, config_hash = folder.read(CONFIG, MOST_TEXT_BYTES)
    if config_hash != known.config_hash:
        raise changed(folder.label)
    _check_sizes(peaks, known.settings, label)
    found = {CONFIG: config_hash, WEIGHTS: weights_hash}
    if known.record is not None:
        _check_record(known.record, found, folder.label)
    return content_hash(found)


def _peaks(file: ReadOnce, places: dict[str, Place], label: Path) -> dict[str, float]:
    """Largest magnitude of each tensor, with one piece of the file in memory."""
    buffer = memoryview(bytearray(8 * PIECE_NUMBERS))
    peaks = dict.fromkeys(places, 0.0)
    for name, place in places.items():
        dtype = FLOATS[place.dtype]
        for begin in range(0, place.elements, PIECE_NUMBERS):
            count = min(PIECE_NUMBERS, place.elements - begin)
            piece = buffer[: count * dtype.itemsize]
            file.fill(piece)
            peaks[name] = max(peaks[name], peak(name, torch.frombuffer(piece, dtype=dtype), label))
    return peaks


def _check_sizes(peaks: dict[str, float], settings: LoraSettings, label: Path) -> None:
    advice = "the training diverged, or the file is not what it says"
    for name, value in peaks.items():
        if value > LARGEST:
            raise AdapterError(f"{label}: {name} reaches {value:.3g}, above {LARGEST:g}; {advice}")
    for name in settings.targets:
        rank, scale = settings.for_module(name)
        a, b = (peaks[f"{PREFIX}{name}.lora_{letter}.weight"] for letter in "AB")
        if scale * rank * a * b > LARGEST:
            raise AdapterError(
                f"{label}: the update of {name} may reach {scale * rank * a * b:.3g} "
                f"(alpha included), above {LARGEST:g}; {advice}"
            )


def _check_record(record: Record, found: dict[str, str], label: Path) -> None:
    for name, value in found.items():
        if record.weights.get(name) != value:
            said = "another SHA-256 for it" if name in record.weights else "nothing of it"
            raise AdapterError(
                f"{label}: {RECORD_FILE} belongs to other files: it says {said} ({name}); copy "
                "the folder again, or delete the record to have the adapter judged as one "
                "without"
            )


def read_checked(files: AdapterFiles) -> tuple[LoraSettings, dict[str, Tensor]]:
    """Read an adapter that was checked, if it is still the same.

    Args:
        files: As `Library.open` gives them.

    Returns:
        Settings with full module names; tensors by their names in the file, in its type. They
        are views of one buffer, which is all that is held.

    Raises:
        AdapterError: its bytes are not those that were checked.
        UnreadableError: it cannot be read now.
    """
    label = Path(files.name)
    with OpenFolder(files.folder, label) as folder:
        text, config_hash = folder.read(CONFIG, MOST_TEXT_BYTES)
        # Any size but the known one is refused before anything is taken.
        with folder.opened(WEIGHTS, sys.maxsize) as file:
            if file.size != files.bytes:
                raise changed(label, SINCE)
            places = read_places(file)
            data = file.take(max(place.end for place in places.values()))
            weights_hash = file.finish()
        if content_hash({CONFIG: config_hash, WEIGHTS: weights_hash}) != files.digest:
            raise changed(label, SINCE)
    settings = resolved(
        strict_json(text, label / CONFIG), {n: p.shape for n, p in places.items()}, label
    )
    return settings, {name: _view(data, place) for name, place in places.items()}


def _view(data: bytearray, place: Place) -> Tensor:
    flat = torch.frombuffer(
        data, dtype=FLOATS[place.dtype], count=place.elements, offset=place.begin
    )
    return flat.view(place.shape)
