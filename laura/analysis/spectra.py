"""Singular values by the Gram matrix, and what they say about a matrix.

The eigenvalues of W Wᵀ (of the smaller side) are the squared singular values, and cost
half of the singular values themselves, a fraction where W is wide. Squaring loses the
small ones: in float32 an eigenvalue is uncertain by about 1e-7 of the largest, a
singular value by 3e-4 of it. Energy (sums of squares) does not mind, the entropy of the
singular values may. So float32 is used where its error, generously estimated, cannot
change what is told, and float64 everywhere else (see `_good_enough`).

Shapes: O outputs, I inputs, K = min(O, I) singular values, R rank of a product.

Pure noise is the reference for the rank of an update (`noise_rank`). A matrix of
independent entries of one variance has a high rank by itself, the higher the less square it
is. Its squared singular values follow the law of Marchenko and Pastur; energy under that law
is a semicircle, so both shares below are closed forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from laura.results.errors import ModelError, ShapeError

ENERGIES = (0.5, 0.9, 0.99)
# How far float32's eigenvalues are taken to be off, in units of its epsilon times the largest;
# about four times the worst seen of those that are small, where it matters.
UNCERTAIN = 8.0
EFFECTIVE_RANK_TOLERANCE = 1e-3
COLUMNS_AT_ONCE, ROW_BLOCKS = 2048, 8
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

    def facts(self, values: bool = False) -> dict[str, Any]:
        """Everything above as a JSON value; ranks by percentage of the energy.

        Args:
            values: Whether the singular values themselves are told, as "values".
        """
        told = {
            "rank": {f"{100 * energy:.0f}": self.rank(energy) for energy in ENERGIES},
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "frobenius": self.frobenius,
            "spectral": self.spectral,
        }
        return {**told, "values": self.values_K.tolist()} if values else told


def spectrum(matrix_OI: Tensor, name: str = "the matrix") -> Spectrum:
    """Singular values of a dense matrix.

    Args:
        matrix_OI: Shape (O, I), float32; on any device that has float64 (see
            `models.device.spectral_device`). It is read only.
        name: Named in errors.

    Returns:
        Its spectrum. Ranks of `ENERGIES` equal those of a float64 SVD; `effective_rank`
        is within 1e-3 of its own size; norms within 1e-4. Beside the matrix at most two
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
    squares_K = _eigenvalues(gram(small_KL, torch.float32))
    if not _good_enough(squares_K):
        squares_K = _eigenvalues(gram(small_KL, torch.float64))
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


def gram(small_KL: Tensor, dtype: torch.dtype) -> Tensor:
    """The lower triangle of W Wᵀ, computed in `dtype`; the eigenvalue routines read no more.

    In blocks: half of the products are left out, and only a part of W is cast at a time.
    """
    rows = small_KL.shape[0]
    gram_KK = torch.zeros(rows, rows, dtype=dtype, device=small_KL.device)
    step = max(1, -(-rows // ROW_BLOCKS))
    for part in small_KL.split(COLUMNS_AT_ONCE, dim=1):
        part_KC = part.to(dtype)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            gram_KK[start:stop, :stop].addmm_(part_KC[start:stop], part_KC[:stop].T)
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
    """Whether float32's eigenvalues give the same ranks, and nearly the same entropy."""
    sums_K = squares_K.cumsum(0) / squares_K.sum()
    in_sums, in_entropy = _uncertainty(squares_K)
    near = any(bool(((sums_K - energy).abs() <= in_sums).any()) for energy in ENERGIES)
    return not near and in_entropy <= EFFECTIVE_RANK_TOLERANCE


def _uncertainty(squares_K: Tensor) -> tuple[float, float]:
    """How far sums of float32's eigenvalues, as shares, and their entropy may be off.

    Errors of eigenvalues that are resolved have random signs, so they add as roots of sums
    of squares; those of the unresolved are all above zero and add as they are. To first
    order the entropy moves by |ln p + H| for each unit of a share p; a singular value moves
    by d / 2s for an eigenvalue's d, by sqrt(d) where it is not resolved. A few units of the
    sum are added for what all have in common.
    """
    unit = torch.finfo(torch.float32).eps
    error = UNCERTAIN * unit * float(squares_K[0])
    lost_K = squares_K <= error
    resolved, lost = int((~lost_K).sum()), int(lost_K.sum())
    total = float(squares_K.sum())
    in_sums = 4 * unit + error * (math.sqrt(resolved) / UNCERTAIN + lost) / total
    values_K = squares_K.sqrt()
    floor_K = values_K.clamp(min=math.sqrt(error))
    moves_K = torch.where(lost_K, math.sqrt(error), error / (2 * floor_K)) / values_K.sum()
    weights_K = ((floor_K / values_K.sum()).log() + _entropy(values_K)).abs()
    terms_K = moves_K * weights_K
    in_entropy = float(torch.linalg.vector_norm(terms_K[~lost_K]) + terms_K[lost_K].sum())
    return in_sums, 4 * unit + in_entropy


@cache
def noise_rank(rows: int, columns: int, energy: float) -> int:
    """Rank that holds a share of the energy of a large matrix of independent noise.

    Args:
        rows: Size of one side.
        columns: Size of the other.
        energy: Share of the sum of squared singular values, in (0, 1).

    Returns:
        Count of singular directions, 1 to min(rows, columns). The law is that of large
        matrices; a sampled one is within a few directions of it.

    Example:
        4096 x 4096 at 0.9 gives 2,089, which is 51 %; 4096 x 11008 gives 71 %.

    Source:
        Marchenko and Pastur 1967; the reference is our reading of Biderman et al. 2024,
        arXiv:2405.09673, figure S8.
    """
    small, large = sorted((rows, columns))
    share = _share_of_directions(_angle_of_energy(energy), small / large)
    return min(small, max(1, math.ceil(share * small)))


def _angle_of_energy(energy: float) -> float:
    """Where eigenvalue c + R cos(angle) has this share of the energy above it.

    With c = 1 + y and R = 2 sqrt(y), y the ratio of the sides, the energy above an
    eigenvalue is (angle - sin cos) / pi at every y.
    """
    low, high = 0.0, math.pi
    for _ in range(60):
        middle = (low + high) / 2
        share = (middle - math.sin(middle) * math.cos(middle)) / math.pi
        low, high = (middle, high) if share < energy else (low, middle)
    return high


def _share_of_directions(angle: float, ratio: float) -> float:
    """Share of eigenvalues above c + R cos(angle): 2/pi of the integral of sin²/(c + R cos)."""
    s = math.sqrt(ratio)
    half = math.atan2((1 - s) * math.sin(angle / 2), (1 + s) * math.cos(angle / 2))
    whole = (1 + ratio) * angle - 2 * s * math.sin(angle) - 2 * (1 - ratio) * half
    return whole / (2 * math.pi * ratio)
