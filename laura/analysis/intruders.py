"""Intruder dimensions: leading directions of a tuned matrix that its base does not have.

Shapes: O outputs, I inputs, K = min(O, I), k leading directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laura.analysis.spectra import gram

# Directions of the base below this share of its largest singular value are noise of its storage.
RESOLVED = 1e-7


def similarities(base_OI: Tensor, tuned_OI: Tensor, k: int) -> Tensor:
    """How like a base direction each leading direction of the tuned matrix is.

    Args:
        base_OI: Shape (O, I), float32.
        tuned_OI: The same shape.
        k: Leading directions of the tuned matrix; at most K are there.

    Returns:
        For each of the k first left singular vectors of `tuned_OI` the largest absolute
        cosine with any left singular vector of `base_OI`, 0 to 1; float64, on the CPU.
        Absolute, since the signs of singular vectors are arbitrary.

    Source:
        Shuttleworth et al. 2024, arXiv:2410.21228, section 3.
    """
    leading_Ok = leading_directions(tuned_OI, k)
    wide = base_OI.shape[0] <= base_OI.shape[1]
    small_KL = base_OI if wide else base_OI.T
    squares_K, vectors_KK = torch.linalg.eigh(gram(small_KL, torch.float64))
    if wide:
        cosines_kK = leading_Ok.T @ vectors_KK
    else:
        # u_j = W v_j / s_j; directions whose s_j is lost in rounding have no u_j.
        values_K = squares_K.clamp(min=0).sqrt()
        kept = values_K > RESOLVED * values_K[-1]
        projected_kI = (leading_Ok.T.float() @ base_OI).double()
        cosines_kK = (projected_kI @ vectors_KK[:, kept]) / values_K[kept]
    if cosines_kK.shape[1] == 0:
        return torch.zeros(leading_Ok.shape[1], dtype=torch.float64)
    largest_k: Tensor = cosines_kK.abs().amax(dim=1)
    return largest_k.clamp(max=1).cpu()


def count_intruders(base_OI: Tensor, tuned_OI: Tensor, k: int, eps: float) -> int:
    """Leading directions of the tuned matrix whose likeness to every base direction is < eps."""
    return int((similarities(base_OI, tuned_OI, k) < eps).sum())


def leading_directions(matrix_OI: Tensor, k: int) -> Tensor:
    """The first k left singular vectors, shape (O, k), float64, orthonormal.

    A matrix of lower rank than k gives as many as it has.
    """
    wide = matrix_OI.shape[0] <= matrix_OI.shape[1]
    small_KL = matrix_OI if wide else matrix_OI.T
    squares_K, vectors_KK = torch.linalg.eigh(gram(small_KL, torch.float64))
    k = min(k, int((squares_K > (RESOLVED**2) * squares_K[-1].clamp(min=0)).sum()))
    first_Kk: Tensor = vectors_KK.flip(1)[:, :k]
    if wide:
        return first_Kk
    # Their images under W are orthogonal but for rounding, which QR takes out.
    left_Ok: Tensor = torch.linalg.qr((matrix_OI @ first_Kk.float()).double()).Q
    return left_Ok
