"""The spectra of base, tuned and update of every matrix of a model, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laura.analysis.spectra import ENERGIES, noise_rank, product_spectrum, spectrum
from laura.analysis.subspaces import count_intruders, leading_energy
from laura.analysis.weights import Matrix, StoredModel, Tuned
from laura.results.progress import SILENT, Progress
from laura.results.store import kept_rows

NARROW = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Wanted:
    """What is measured beside the spectra.

    Attributes:
        intruders: Whether intruder dimensions are counted.
        k: Leading directions of the tuned matrix that are looked at.
        eps: A direction less alike than this to every base direction is an intruder.
        leading: Leading directions of the base in which the update's energy is told; 0 for none.
        values: Names of matrices whose singular values are kept, all of them.
    """

    intruders: bool = False
    k: int = 10
    eps: float = 0.5
    leading: int = 0
    values: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as a JSON value."""
        told = {"intruders": self.intruders, "k": self.k, "eps": self.eps}
        return {**told, "leading": self.leading} if self.leading else told


SPECTRA_ALONE = Wanted()


def base_spectra(
    base: StoredModel,
    *,
    file: Path,
    identity: dict[str, Any],
    device: torch.device,
    progress: Progress = SILENT,
) -> dict[str, dict[str, Any]]:
    """The spectrum of every matrix of a base, by name, kept in `file` as they come.

    Args:
        base: The model.
        file: JSON Lines; what it holds of the same `identity` is not measured again.
        identity: What determines the results.
        device: Where to compute.
        progress: Where to report.

    Raises:
        ModelError: a matrix is not finite.
    """

    def measure(one: Matrix) -> dict[str, Any]:
        told = f"{one.name} of {base.folder}"
        return {"name": one.name, **spectrum(base.read(one.name, device), told).facts()}

    rows = each_matrix(
        base.matrices.values(), measure, "spectra of the base", file, identity, progress
    )
    return {row.pop("name"): row for row in rows}


def measure_spectra(
    base: StoredModel,
    tuned: Tuned,
    wanted: Wanted,
    *,
    known: Mapping[str, dict[str, Any]] | None = None,
    file: Path,
    identity: dict[str, Any],
    device: torch.device,
    title: str = "spectra",
    progress: Progress = SILENT,
) -> list[dict[str, Any]]:
    """Spectra of base, tuned and update of every matrix, kept in `file` as they come.

    Less than three of the largest matrices in float32 are held at once where that one is
    at least twice as long as wide, intruders and adapters of high rank aside.

    Args:
        base: The model before finetuning.
        tuned: What was made of it.
        wanted: What is measured beside.
        known: Spectra of the base by name, where they are known.
        file: JSON Lines; what it holds of the same `identity` is not measured again.
        identity: What determines the results, beside `wanted`.
        device: Where to compute.
        title: Words on the progress bar.
        progress: Where to report.

    Returns:
        One entry a matrix, by layer, as in the `spectra` part of a study's analysis.

    Raises:
        ModelError: base or update of a matrix is not finite; the message names it.
    """

    def measure(one: Matrix) -> dict[str, Any]:
        return _measure(base, tuned, one, wanted, (known or {}).get(one.name), device)

    identity = {**identity, "settings": wanted.settings, "values": list(wanted.values)}
    return each_matrix(base.matrices.values(), measure, title, file, identity, progress)


def warnings(base: StoredModel, tuned: Tuned, matrices: Iterable[dict[str, Any]]) -> list[str]:
    """What a reader of the results must know; see Biderman et al. 2024, section 5."""
    found = []
    narrow = sorted(NARROW[dtype] for dtype in tuned.dtypes & set(NARROW))
    if narrow:
        words = "; the base too" if base.dtypes & set(NARROW) else ""
        found.append(
            f"the tuned weights are stored in {narrow[0]}{words}: rounding adds noise of full rank "
            "to the update, and deletes small changes; save checkpoints in float32 for its rank"
        )
    large = [one["name"] for one in matrices if (one["relative_frobenius"] or 0) > 1]
    if large:
        found.append(
            f"the update of {len(large)} matrices, such as {large[0]}, is larger than the matrix "
            "itself; is this the base it was trained from?"
        )
    return found


def each_matrix(
    matrices: Iterable[Matrix],
    measure: Callable[[Matrix], dict[str, Any]],
    title: str,
    file: Path,
    identity: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Results of every matrix, kept in `file` as they come; those that stand are not repeated."""
    every = list(matrices)
    with kept_rows(file, identity) as (rows, keep):
        done = {row["name"]: row for row in rows}
        left = [one for one in every if one.name not in done]
        with progress.bar(title, len(left), "matrices") as bar:
            for one in left:
                bar.note(one.name)
                done[one.name] = measure(one)
                keep(done[one.name])
                bar.advance()
    return [done[one.name] for one in every]


def _measure(
    base: StoredModel,
    tuned: Tuned,
    one: Matrix,
    wanted: Wanted,
    known: dict[str, Any] | None,
    device: torch.device,
) -> dict[str, Any]:
    name = one.name
    values = name in wanted.values
    if known is None or values:
        known = spectrum(base.read(name, device), f"{name} of {base.folder}").facts(values)
    factors = tuned.factors(name, device)
    told = f"the update of {name}"
    if factors is None:
        update = spectrum(tuned.read_update(name, device), told)
    else:
        update = product_spectrum(*factors, told)
    changed = update.spectral > 0
    after = (
        spectrum(tuned.read(name, device), f"the tuned {name}").facts(values) if changed else known
    )
    intruders = None
    if wanted.intruders:
        intruders = 0
        if changed:
            pair = base.read(name, device), tuned.read(name, device)
            intruders = count_intruders(*pair, wanted.k, wanted.eps)
    energy = None
    if wanted.leading and changed:
        pair = base.read(name, device), tuned.read_update(name, device)
        energy = leading_energy(*pair, wanted.leading)
    return {
        "name": name,
        "layer": one.layer,
        "module": one.module,
        "shape": list(one.shape),
        "noise_rank": {f"{100 * e:.0f}": noise_rank(*one.shape, e) for e in ENERGIES},
        **update.facts(values),
        "relative_frobenius": _share(update.frobenius, known["frobenius"]),
        "relative_spectral": _share(update.spectral, known["spectral"]),
        "base": known,
        "tuned": after,
        "intruders": intruders,
        "leading_energy": energy,
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
