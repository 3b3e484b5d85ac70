"""Models beside one another: a base and what was made of it, and two things made of one base."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laura.analysis.measuring import SPECTRA_ALONE, Wanted, each_matrix, measure_spectra, warnings
from laura.analysis.subspaces import factor_directions, overlap, update_directions
from laura.analysis.weights import Matrix, StoredModel, Tuned, open_tuned
from laura.models.adapter_files import CONFIG, WEIGHTS
from laura.models.device import spectral_device
from laura.models.load import resolve_model, weight_files
from laura.results.errors import UsageError
from laura.results.progress import SILENT, Progress
from laura.results.store import content_hash, file_hash, write_json

FORMAT = 1


def compare_weights(
    base: str,
    tuned: str,
    *,
    out: Path,
    wanted: Wanted = SPECTRA_ALONE,
    device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Spectra of base, tuned and update of every matrix of a model's decoder layers.

    Results are kept in OUT.partial.jsonl as they come; the same call goes on there.

    Args:
        base: The model before finetuning: registry name, Hub id, folder or GGUF file.
        tuned: What was made of it: the same, or the folder of a PEFT adapter.
        out: JSON file for the result.
        wanted: What is measured beside the spectra.
        device: Device name; None for the best there is.
        progress: Where to report.

    Returns:
        {"format", "base", "tuned", "settings", "warnings", "matrices"}, as in `out`.

    Raises:
        ModelError, AdapterError, ShapeError: the two do not belong together, a file is
            damaged, or a matrix is not finite; the message names it.
        UsageError: `out` is a folder, or there is no matrix of a name in `wanted.values`.
    """
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file, such as {out / 'spectra.json'}")
    place = spectral_device(device)
    folder, other = resolve_model(base, progress=progress), resolve_model(tuned, progress=progress)
    before = StoredModel(folder)
    after = open_tuned(before, other)
    _check_names(wanted.values, list(before.matrices))
    partial = out.with_name(f"{out.stem}.partial.jsonl")
    matrices = measure_spectra(
        before,
        after,
        wanted,
        file=partial,
        identity={"base": _weights_hash(folder), "tuned": _weights_hash(other)},
        device=place,
        progress=progress,
    )
    answer = {
        "format": FORMAT,
        "base": base,
        "tuned": tuned,
        "settings": wanted.settings,
        "warnings": warnings(before, after, matrices),
        "matrices": matrices,
    }
    write_json(out, answer)
    partial.unlink(missing_ok=True)
    return answer


def _check_names(asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"there is no matrix {name!r}; "
                + (f"did you mean {near[0]}?" if near else f"they are called like {known[0]}")
            )


def compare_subspaces(
    base: StoredModel,
    pair: Sequence[Tuned],
    k: int,
    *,
    file: Path,
    identity: dict[str, Any],
    device: torch.device,
    progress: Progress = SILENT,
) -> list[dict[str, Any]]:
    """Overlap of the leading output directions of two updates, matrix by matrix.

    Args:
        base: The model both were made from.
        pair: What was made of it.
        k: Leading left singular vectors of each update; fewer where one has fewer.
        file: JSON Lines; what it holds of the same `identity` is not measured again.
        identity: What determines the results.
        device: Where to compute.
        progress: Where to report.

    Returns:
        {"name", "layer", "module", "k", "overlap", "noise_overlap", "angles"} of every
        matrix (see `Overlap`); where an update is zero k is 0 and the others are null.
    """

    def measure(one: Matrix) -> dict[str, Any]:
        first, second = (_directions(tuned, one.name, k, device) for tuned in pair)
        found = overlap(first, second)
        return {
            "name": one.name,
            "layer": one.layer,
            "module": one.module,
            "k": found.k if found else 0,
            "overlap": found.overlap if found else None,
            "noise_overlap": found.noise_overlap if found else None,
            "angles": list(found.angles) if found else None,
        }

    every = base.matrices.values()
    return each_matrix(every, measure, "subspaces", file, identity, progress)


def _directions(tuned: Tuned, name: str, k: int, device: torch.device) -> Tensor:
    factors = tuned.factors(name, device)
    if factors is not None:
        return factor_directions(*factors, k)
    return update_directions(tuned.read_update(name, device), k, f"the update of {name}")


def _weights_hash(folder: Path) -> str:
    adapter = (folder / CONFIG).is_file()
    files = [folder / CONFIG, folder / WEIGHTS] if adapter else weight_files(folder)
    return content_hash([file_hash(file) for file in files])
