"""Singular values by the Gram matrix, and what they say about a matrix.

The eigenvalues of W Wᵀ (of the smaller side) are the squared singular values, and cost
half of the singular values themselves, a fraction where W is wide. Squaring loses the
small ones: in float32 an eigenvalue is uncertain by about 1e-7 of the largest, a
singular value by 3e-4 of it. Energy (sums of squares) does not mind, the entropy of the
singular values may. So float32 is used where a bound on its error shows that every
number told stays the same, and float64 everywhere else (see `_good_enough`).

Shapes: O outputs, I inputs, K = min(O, I) singular values, R rank of a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laura.errors import ModelError, ShapeError

ENERGIES = (0.5, 0.9, 0.99)
# Errors of the eigenvalues in units of float32's epsilon times the largest, each twice or
# more of the worst seen (Gaussian, decaying and low-rank spectra, sides of 64 to 4096).
UNCERTAIN_IN_SUMS, UNCERTAIN_ALONE = 2.0, 8.0
EFFECTIVE_RANK_TOLERANCE = 1e-3
# Columns that are cast to float64 together.
BLOCK_COLUMNS = 512
# Squares of entries beyond these leave float32; such a matrix is scaled first.
LEAST, MOST = 2.0**-30, 2.0**30


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix.

    Attributes:
        values_K: Falling, float64, on the CPU; zeros may be left out.
    """

    values_K: Tensor

    def rank(self, energy: float) -> int:
        """Smallest rank whose truncated SVD keeps a share of the energy.

        Energy is the sum of squared singular values, so overall scale cancels.

        Args:
            energy: Share to keep, a fraction in (0, 1], not a percentage.

        Returns:
            Count of singular directions; 0 for a zero matrix.

        Raises:
            ValueError: energy is outside (0, 1].

        Source:
            Biderman et al. 2024, arXiv:2405.09673, section 5: rank that explains 90 % of
            the variance. The paper leaves "variance" open; squares are our reading.
        """
        if not 0 < energy <= 1:
            raise ValueError(f"energy must be in (0, 1], came {energy}")
        return _rank(self.values_K.square(), energy)

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the singular values as shares of their sum.

        1 to K; 0 for a zero matrix. Source: Roy and Vetterli 2007 (EUSIPCO).
        """
        return math.exp(_entropy(self.values_K)) if self.spectral > 0 else 0.0

    @property
    def stable_rank(self) -> float:
        """Energy over that of the first direction, 1 to K; 0 for a zero matrix."""
        return (self.frobenius / self.spectral) ** 2 if self.spectral > 0 else 0.0

    @property
    def frobenius(self) -> float:
        """Frobenius norm."""
        return float(torch.linalg.vector_norm(self.values_K))

    @property
    def spectral(self) -> float:
        """Largest singular value; 0 for a zero matrix."""
        return float(self.values_K[0]) if len(self.values_K) else 0.0

    def facts(self) -> dict[str, Any]:
        """Everything above as a JSON value; ranks by percentage of the energy."""
        return {
            "rank": {f"{100 * energy:.0f}": self.rank(energy) for energy in ENERGIES},
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "frobenius": self.frobenius,
            "spectral": self.spectral,
        }


def spectrum(matrix_OI: Tensor, name: str = "the matrix") -> Spectrum:
    """Singular values of a dense matrix.

    Args:
        matrix_OI: Shape (O, I), float32; on any device that has float64 (see
            `models.device.spectral_device`). It is read only.
        name: Named in errors.

    Returns:
        Its spectrum. Ranks of `ENERGIES` equal those of a float64 SVD; `effective_rank`
        is within 1e-3 of its own size; norms within 1e-5. Beside the matrix at most two
        K x K matrices of float64 are held.

    Raises:
        ShapeError: not two-dimensional (also a ValueError).
        ModelError: not finite (also a ValueError): a diverged run must not pass as low rank.
    """
    _check(matrix_OI, name)
    if matrix_OI.numel() == 0:
        return Spectrum(torch.zeros(0, dtype=torch.float64))
    least, most = map(float, torch.aminmax(matrix_OI))
    largest = max(-least, most)
    if not math.isfinite(largest):
        raise ModelError(f"{name} is not finite; the training diverged, so it has no rank")
    if largest == 0:
        return Spectrum(torch.zeros(0, dtype=torch.float64))
    scale = 1.0
    if not LEAST <= largest <= MOST:
        scale = 2.0 ** -math.frexp(largest)[1]
        matrix_OI = matrix_OI * scale
    small_KL = matrix_OI if matrix_OI.shape[0] <= matrix_OI.shape[1] else matrix_OI.T
    squares_K = _eigenvalues(small_KL @ small_KL.T)
    if not _good_enough(squares_K):
        squares_K = _eigenvalues(gram64(small_KL))
    return Spectrum(squares_K.sqrt() / scale)


def product_spectrum(b_OR: Tensor, a_RI: Tensor, name: str = "the product") -> Spectrum:
    """Singular values of B A without forming it, exact to float64.

    B = Q S and Aᵀ = P T with orthonormal Q, P, so B A has the singular values of S Tᵀ.

    Args:
        b_OR: Shape (O, R), scale applied.
        a_RI: Shape (R, I).
        name: Named in errors.

    Raises:
        ShapeError: the shapes do not fit one another.
        ModelError: not finite.
    """
    _check(b_OR, name)
    _check(a_RI, name)
    if b_OR.shape[1] != a_RI.shape[0]:
        raise ShapeError(f"{name}: B is {tuple(b_OR.shape)}, A is {tuple(a_RI.shape)}")
    if not bool(torch.isfinite(b_OR).all() and torch.isfinite(a_RI).all()):
        raise ModelError(f"{name} is not finite; the training diverged, so it has no rank")
    if b_OR.shape[1] == 0 or not bool(b_OR.any() and a_RI.any()):
        return Spectrum(torch.zeros(0, dtype=torch.float64))
    left = torch.linalg.qr(b_OR.double(), mode="r").R
    right = torch.linalg.qr(a_RI.double().T, mode="r").R
    return Spectrum(torch.linalg.svdvals(left @ right.T).cpu())


def gram64(small_KL: Tensor) -> Tensor:
    """W Wᵀ in float64, a block of columns at a time."""
    rows = small_KL.shape[0]
    gram_KK = torch.zeros(rows, rows, dtype=torch.float64, device=small_KL.device)
    for block_KC in small_KL.split(BLOCK_COLUMNS, dim=1):
        wide = block_KC.double()
        gram_KK.addmm_(wide, wide.T)
    return gram_KK


def _check(matrix: Tensor, name: str) -> None:
    if matrix.dim() != 2:
        raise ShapeError(f"{name} has {matrix.dim()} dimensions, expected 2 (out, in)")


def _eigenvalues(gram_KK: Tensor) -> Tensor:
    """Falling, float64, on the CPU; what rounding made negative is zero."""
    rising_K: Tensor = torch.linalg.eigvalsh(gram_KK)
    return rising_K.flip(0).double().cpu().clamp(min=0)


def _rank(squares_K: Tensor, energy: float) -> int:
    total = float(squares_K.sum())
    if total == 0:
        return 0
    # What rounding leaves above the last sum must not ask for a direction that is not there.
    reached = squares_K.cumsum(0) < energy * total
    return min(int(reached.sum()) + 1, int((squares_K > 0).sum()))


def _entropy(values_K: Tensor) -> float:
    """Of the values as shares of their sum, in nats; zero values count nothing."""
    shares = values_K / values_K.sum()
    return float(torch.special.entr(shares).sum())


def _good_enough(squares_K: Tensor) -> bool:
    """Whether float32's eigenvalues give the same ranks, and nearly the same entropy.

    Ranks: a sum of eigenvalues is off by at most `UNCERTAIN_IN_SUMS` units for each of
    them (and, where they are alike, by a few units of the sum). Where a threshold lies so
    near a sum, float64 decides. Entropy: to first order it moves by |ln p + H| for each
    unit of p; a singular value moves by d / 2s, or by sqrt(d) where it is not resolved.
    """
    unit = torch.finfo(torch.float32).eps
    total, largest = float(squares_K.sum()), float(squares_K[0])
    sums_K = squares_K.cumsum(0) / total
    band = UNCERTAIN_IN_SUMS * unit * max(4.0, len(squares_K) * largest / total)
    if any(bool(((sums_K - energy).abs() <= band).any()) for energy in ENERGIES):
        return False
    error = UNCERTAIN_ALONE * unit * largest
    values_K = squares_K.sqrt()
    moves_K = (error / (2 * values_K)).clamp(max=math.sqrt(error))
    shares_K = (values_K.clamp(min=math.sqrt(error)) / values_K.sum()).clamp(max=1)
    weight_K = (shares_K.log() + _entropy(values_K)).abs()
    return float((moves_K * weight_K).sum() / values_K.sum()) <= EFFECTIVE_RANK_TOLERANCE
