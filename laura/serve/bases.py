"""What of a base decides which adapters fit it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BaseFacts:
    """The base that is served.

    Attributes:
        name: What it is called; no adapter may have this name.
        fingerprint: Hash of its weights and config, as `laura.json` records it; None where
            it is not known, and then no adapter's base can be verified.
        linears: (out, in) of every Linear by its full name.
    """

    name: str
    fingerprint: str | None
    linears: dict[str, tuple[int, int]]


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
        StoreError: the weights cannot be read.
    """
    from laura.models import load
    from laura.models.adapter_files import linear_shapes

    linears = linear_shapes(load.empty_model(model_folder))
    return BaseFacts(
        name or model_folder.name, fingerprint or load.fingerprint(model_folder), linears
    )
