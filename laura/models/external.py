"""Checkpoints made elsewhere: where their weights lie, and whether they are what is said of them.

In a run's folder stands only a note, `external.json`: the model's name and revision, and
the SHA-256 of its weights, so that what was measured is not exchanged unseen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laura.models.adapter_files import CONFIG, WEIGHTS, read_whole
from laura.models.load import check_model_folder, resolve_model, weight_files
from laura.recipe.sections import AdapterArm, Arm, ExternalPoint, LoraArm, OftArm
from laura.results.errors import AdapterError, CheckpointError, ModelError
from laura.results.progress import SILENT, Progress
from laura.results.store import file_hash, read_json, write_json

NOTE = "external.json"
# What must agree between a checkpoint's config and the base's, for the same inputs and tokens.
SHAPE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


def find_external(point: ExternalPoint, arm: Arm, base: Path, progress: Progress = SILENT) -> Path:
    """The folder of a checkpoint made elsewhere, if it is what the arm says.

    Args:
        point: Its name, and revision on the Hub.
        arm: How it was made: a full checkpoint or an adapter, of which rank and alpha.
        base: Folder of the study's base.
        progress: Told about downloads.

    Raises:
        ModelError: no such folder, an adapter where a checkpoint was expected, or a
            checkpoint of another shape than the base.
        AdapterError: no adapter, one that cannot be read, or of other settings.
        HubError: it must be downloaded and cannot be.
    """
    folder = resolve_model(point.model, point.revision, progress)
    if isinstance(arm, AdapterArm):
        _check_adapter(arm, folder)
    else:
        check_model_folder(folder)
        _check_shape(folder, base)
    return folder


def write_note(folder: Path, point: ExternalPoint, weights: Path) -> None:
    """Write into a run's checkpoint folder what stands there for weights made elsewhere."""
    note = {
        "model": point.model,
        "revision": point.revision,
        "sha256": {path.name: file_hash(path) for path in _files(weights)},
    }
    write_json(folder / NOTE, note)


def weights_folder(checkpoint: Path, progress: Progress = SILENT) -> Path:
    """Where the weights of a run's checkpoint lie: in its folder, or elsewhere.

    Raises:
        CheckpointError: they were made elsewhere and have changed since.
        ModelError: they are gone.
    """
    if not (checkpoint / NOTE).is_file():
        return checkpoint
    note = read_json(checkpoint / NOTE)
    folder = resolve_model(note["model"], note["revision"], progress)
    if {path.name: file_hash(path) for path in _files(folder)} != note["sha256"]:
        raise CheckpointError(
            f"the weights in {folder} have changed since they joined this study; put back the old "
            "ones, or give the new ones another folder and name that in the recipe"
        )
    return folder


def _files(folder: Path) -> list[Path]:
    return [folder / WEIGHTS] if _is_adapter(folder) else weight_files(folder)


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _check_adapter(arm: AdapterArm, folder: Path) -> None:
    found, _, _ = read_whole(folder)
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("block_size", arm.block_size if isinstance(arm, OftArm) else 0, found.block_size),
    )
    if isinstance(arm, LoraArm):
        pairs += (
            ("rank", arm.rank, found.rank),
            ("alpha", arm.alpha_value, found.alpha),
            ("rslora", arm.rslora, found.rslora),
            ("dora", arm.dora, found.dora),
        )
    wrong = [f"{name} {there}, not {said}" for name, said, there in pairs if said != there]
    if wrong:
        raise AdapterError(
            f"{folder} has {'; '.join(wrong)} as the recipe says; write into the arm what the "
            "adapter has"
        )


def _check_shape(folder: Path, base: Path) -> None:
    tuned, before = read_json(folder / "config.json"), read_json(base / "config.json")
    wrong = [
        f"{key} {tuned.get(key)}, not {before.get(key)}"
        for key in SHAPE
        if tuned.get(key) != before.get(key)
    ]
    if wrong:
        raise ModelError(
            f"{folder} is no checkpoint of this base: it has {'; '.join(wrong)}. Name the base it "
            "was made from (added tokens must be taken out of it again)"
        )
