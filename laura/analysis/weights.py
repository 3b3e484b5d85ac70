"""The matrices of saved models and adapters, read one at a time, a few rows at a time.

Safetensors files are mapped into memory, and mapped pages that were read count as the
process's own until the file is closed: each part of a matrix opens its file anew.

A matrix's name is its module's, as in PEFT: `model.layers.3.self_attn.q_proj`.
Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from laura.models.adapter_files import CONFIG, MAGNITUDE, PREFIX, check_fit, read_adapter
from laura.models.families import expert_of
from laura.models.load import WEIGHT_INDEX, weight_files
from laura.models.load import WEIGHTS as MODEL_WEIGHTS
from laura.models.lora import Route
from laura.models.nf4 import rounded
from laura.models.oft import OFT_R, OftLinear
from laura.results.errors import AdapterError, ModelError, ShapeError
from laura.results.inputs import open_regular

# Elements of a matrix that are read together: 16 MiB in float32.
PART_ELEMENTS = 2**22
PATTERN = re.compile(r"(?:^|\.)(layers\.(\d+)\.(.+))\.weight$")


@dataclass(frozen=True)
class Matrix:
    """One linear map of a decoder layer, and where it lies.

    Attributes:
        name: Full name of the module.
        layer: Number of its layer, from 0.
        module: Last part of the name: `q_proj`.
        shape: (O, I).
        dtype: As safetensors calls it: F32, BF16, ...
        file: The safetensors file.
        key: Its name in there.
    """

    name: str
    layer: int
    module: str
    shape: tuple[int, int]
    dtype: str
    file: Path
    key: str


class StoredModel:
    """A model folder of safetensors.

    Args:
        folder: Shards or one file, as transformers writes them.
        held: The type its weights were held in when something was trained on them, to which
            they are rounded when read; None for that in which they are stored.
        quantised: Whether they were held in NF4: they are what it makes of them when read.

    Attributes:
        matrices: Every two-dimensional weight inside a decoder layer, by name, in order.

    Raises:
        ModelError: there are none, or a file is missing or damaged.
    """

    def __init__(
        self, folder: Path, held: torch.dtype | None = None, quantised: bool = False
    ) -> None:
        self.folder, self.held, self.quantised = folder, held, quantised
        if not any((folder / name).is_file() for name in (MODEL_WEIGHTS, WEIGHT_INDEX)):
            raise ModelError(
                f"{folder} holds no {MODEL_WEIGHTS}; give the folder of a model saved as "
                "safetensors" + (", not of an adapter" if (folder / CONFIG).is_file() else "")
            )
        found = [matrix for file in weight_files(folder) for matrix in _matrices(file)]
        if not found:
            raise ModelError(
                f"{folder} holds no matrix of a decoder layer (layers.N.NAME.weight); "
                "use a model of a family that Laura runs"
            )
        found.sort(key=lambda one: (one.layer, one.name))
        self.matrices: Mapping[str, Matrix] = {one.name: one for one in found}

    @property
    def dtypes(self) -> set[str]:
        """The types its matrices are stored in."""
        return {one.dtype for one in self.matrices.values()}

    def read(self, name: str, device: torch.device) -> Tensor:
        """A matrix in float32, shape (O, I)."""
        matrix_OI = torch.zeros(self.matrices[name].shape, device=device)
        return self.add_to(matrix_OI, name)

    def add_to(self, target_OI: Tensor, name: str, factor: float = 1.0) -> Tensor:
        """Add a matrix, times a factor, to one in float32; returns the latter."""
        for start, rows_CI in self._parts(self.matrices[name]):
            if self.held is not None:
                rows_CI = rows_CI.to(self.held)
            if self.quantised:
                rows_CI = rounded(rows_CI)
            part = target_OI[start : start + len(rows_CI)]
            part.add_(rows_CI.to(part.device, torch.float32), alpha=factor)
        return target_OI

    def _parts(self, matrix: Matrix) -> Iterator[tuple[int, Tensor]]:
        rows, columns = matrix.shape
        # The scales of a quantised matrix have one mean.
        step = rows if self.quantised else max(1, PART_ELEMENTS // max(1, columns))
        for start in range(0, rows, step):
            with safe_open(matrix.file, "pt") as file:
                yield start, file.get_slice(matrix.key)[start : start + step]


class StoredFull:
    """A fully finetuned checkpoint beside its base."""

    def __init__(self, base: StoredModel, folder: Path) -> None:
        """Check that both hold the same matrices; a ModelError or ShapeError tells."""
        self.base, self.model = base, StoredModel(folder)
        self.dtypes = self.model.dtypes
        ours, theirs = base.matrices, self.model.matrices
        missing = sorted(set(ours) - set(theirs))
        surplus = sorted(set(theirs) - set(ours))
        if missing or surplus:
            where, names = (folder, missing) if missing else (base.folder, surplus)
            raise ModelError(
                f"{folder} was not made from {base.folder}: {len(names)} of the matrices are not "
                f"in {where}, such as {names[0]}; give the base it was trained from"
            )
        other = [name for name in ours if ours[name].shape != theirs[name].shape]
        if other:
            name = other[0]
            raise ShapeError(
                f"{folder} was not made from {base.folder}: {len(other)} matrices differ in shape, "
                f"such as {name}: {_by(theirs[name].shape)} instead of {_by(ours[name].shape)}"
            )

    def factors(self, name: str, device: torch.device) -> None:
        """None: the update has no factors."""

    def read(self, name: str, device: torch.device) -> Tensor:
        """The tuned matrix in float32, shape (O, I)."""
        return self.model.read(name, device)

    def read_update(self, name: str, device: torch.device) -> Tensor:
        """Tuned minus base, subtracted in float32, shape (O, I)."""
        return self.base.add_to(self.model.read(name, device), name, -1.0)


class StoredAdapter:
    """A LoRA, DoRA or OFT adapter in PEFT's format beside its base."""

    def __init__(self, base: StoredModel, folder: Path) -> None:
        """Check that it fits the base; an AdapterError tells."""
        self.base = base
        self.settings, self._tensors = read_adapter(folder)
        if any(map(expert_of, self.settings.targets)):
            raise AdapterError(
                f"{folder} changes experts, whose matrices a checkpoint stores otherwise than LoRA "
                "has them; of adapters with targets: attention there are spectra"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        linears = {name: one.shape for name, one in base.matrices.items()}
        check_fit(self.settings, shapes, linears, folder)
        # The type of A and B says how precisely the update is known, so it is always whole.
        self.dtypes: set[str] = set()

    def factors(self, name: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """B (scale applied) and A, float32, whose product is the update; R = 0 without one.

        None for DoRA, which also rescales the rows, and OFT: their updates are no products.
        """
        variant = self.settings.dora or self.settings.block_size
        if variant and name in self.settings.targets:
            return None
        if name not in self.settings.targets:
            outputs, inputs = self.base.matrices[name].shape
            return torch.zeros(outputs, 0, device=device), torch.zeros(0, inputs, device=device)
        return self._product(name, device)

    def read(self, name: str, device: torch.device) -> Tensor:
        """The tuned matrix in float32, shape (O, I)."""
        weight_OI = self.base.read(name, device)
        if name not in self.settings.targets:
            return weight_OI
        if self.settings.block_size:
            return self._rotated(weight_OI, name)
        b_OR, a_RI = self._product(name, device)
        weight_OI.addmm_(b_OR, a_RI)
        if self.settings.dora:
            rescale_rows(weight_OI, self._tensor(name, MAGNITUDE, device))
        return weight_OI

    def read_update(self, name: str, device: torch.device) -> Tensor:
        """The update as a dense matrix in float32, shape (O, I)."""
        found = self.factors(name, device)
        if found is None:
            return self.base.add_to(self.read(name, device), name, -1.0)
        return found[0] @ found[1]

    def _rotated(self, weight_OI: Tensor, name: str) -> Tensor:
        outputs, inputs = weight_OI.shape
        base = nn.Linear(inputs, outputs, bias=False, device="meta")
        base.weight = nn.Parameter(weight_OI, requires_grad=False)
        block_size, terms = self.settings.block_size, self.settings.terms
        layer = OftLinear(base, 1, 1.0, 0.0, 1, Route(), block_size=block_size, terms=terms)
        layer.R.data[0] = self._tensor(name, OFT_R, weight_OI.device)
        return layer.tuned().detach()

    def _product(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        a_RI, b_OR = (self._tensor(name, f"lora_{x}.weight", device) for x in "AB")
        return b_OR * self.settings.for_module(name)[1], a_RI

    def _tensor(self, name: str, part: str, device: torch.device) -> Tensor:
        return self._tensors[f"{PREFIX}{name}.{part}"].to(device, torch.float32, copy=True)


Tuned = StoredFull | StoredAdapter


def open_tuned(base: StoredModel, folder: Path) -> Tuned:
    """A finetuned model's folder, or an adapter's, beside its base.

    Raises:
        ModelError, AdapterError: it cannot be read, or was made from another base.
        ShapeError: its matrices have other shapes than the base's.
    """
    if (folder / CONFIG).is_file():
        return StoredAdapter(base, folder)
    return StoredFull(base, folder)


def rescale_rows(weight_OI: Tensor, magnitude_O: Tensor) -> None:
    """Give every output row of W + B A its own length, in place.

    Source: Liu et al. 2024, arXiv:2402.09353 (DoRA): m (W + B A) / ||W + B A||; as in
    PEFT, one length an output.
    """
    lengths_O = torch.linalg.vector_norm(weight_OI, dim=1)
    weight_OI.mul_((magnitude_O / lengths_O)[:, None])


def _matrices(file: Path) -> list[Matrix]:
    try:
        return list(_listed(file))
    except FileNotFoundError as error:
        raise ModelError(f"{file} is missing, and the index names it; copy it again") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is truncated or damaged ({error}); copy it again") from error


def _listed(file: Path) -> Iterator[Matrix]:
    open_regular(file).close()
    with safe_open(file, "pt") as opened:
        for key in opened.keys():
            match = PATTERN.search(key)
            if match is None:
                continue
            part = opened.get_slice(key)
            shape = tuple(part.get_shape())
            if len(shape) == 2:
                # Some files leave out what stands before `layers`.
                name, module = f"model.{match[1]}", match[3].rsplit(".", 1)[-1]
                yield Matrix(name, int(match[2]), module, shape, part.get_dtype(), file, key)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
