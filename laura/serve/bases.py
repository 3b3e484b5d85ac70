"""What of a base decides which adapters fit it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from laura.results.errors import StoreError
from laura.results.schema import RECORD_FILE, Record, read_record
from laura.results.store import disk_faults, file_hash


@dataclass(frozen=True)
class BaseFacts:
    """The base that is served.

    Attributes:
        name: What it is called; no adapter may have this name.
        fingerprint: Hash of its weights and config, as `laura.json` records it; None where
            it is not known, and then no adapter's base can be verified.
        linears: (out, in) of every Linear by its full name.
        record: Its `laura.json`, where it is itself the outcome of a study; None otherwise.
    """

    name: str
    fingerprint: str | None
    linears: dict[str, tuple[int, int]]
    record: Record | None = None


def base_facts(
    model_folder: Path, name: str | None = None, fingerprint: str | None = None
) -> BaseFacts:
    """Facts of a model folder; its weights are read for the fingerprint alone.

    Args:
        model_folder: A whole model folder (`models.load.resolve_model` finds it).
        name: What the user calls it; None for the folder's name.
        fingerprint: If it is known already (about a second per 1.5 GB otherwise).

    Raises:
        ModelError: no model that Laura runs.
        StoreError: the weights cannot be read, or its `laura.json` belongs to others.
    """
    from laura.models import load
    from laura.models.adapter_files import linear_shapes

    linears = linear_shapes(load.empty_model(model_folder))
    return BaseFacts(
        name or model_folder.name,
        fingerprint or load.fingerprint(model_folder),
        linears,
        _record(model_folder),
    )


def _record(folder: Path) -> Record | None:
    """What a study recorded of a model that it tuned as a whole."""
    if not (folder / RECORD_FILE).is_file():
        return None
    record = read_record(folder)
    for name, checksum in record.weights.items():
        with disk_faults(folder / name):
            found = file_hash(folder / name)
        if found != checksum:
            raise StoreError(
                f"{folder / RECORD_FILE} belongs to other files: it says another SHA-256 for "
                f"{name}; write the folder again with `laura recommend STUDY --adapter DIR`, or "
                "delete the record"
            )
    return record
