"""How much of two updates of one matrix lies in the same directions.

Intruder dimensions are leading directions of a tuned matrix that its base does not have.

Shapes: O outputs, I inputs, K = min(O, I), R rank of a LoRA update, k leading directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laura.analysis.spectra import gram
from laura.results.errors import ModelError


@dataclass(frozen=True)
class Overlap:
    """Two subspaces beside each other.

    Attributes:
        k: Dimension of both.
        overlap: Mean squared cosine of their principal angles, 0 (orthogonal) to 1 (the same).
        noise_overlap: What two random subspaces have on average: k / O.
        angles: Principal angles, radians, rising.
    """

    k: int
    overlap: float
    noise_overlap: float
    angles: tuple[float, ...]


def factor_directions(b_OR: Tensor, a_RI: Tensor, k: int) -> Tensor:
    """The first k left singular vectors of B A, shape (O, k), float64; fewer if its rank is."""
    if b_OR.shape[1] == 0:
        return b_OR.double()
    q_OR, left = torch.linalg.qr(b_OR.double())
    right = torch.linalg.qr(a_RI.double().T, mode="r").R
    u_RR, values_R, _ = torch.linalg.svd(left @ right.T)
    # Beyond float32's own precision a direction is none of the update's.
    rank = int((values_R > torch.finfo(torch.float32).eps * values_R[0]).sum())
    left_Ok: Tensor = q_OR @ u_RR[:, : min(k, rank)]
    return left_Ok


def update_directions(update_OI: Tensor, k: int, name: str = "the update") -> Tensor:
    """The first k left singular vectors of a dense update, shape (O, k); none if it is zero.

    Raises:
        ModelError: not finite.
    """
    if not bool(torch.isfinite(update_OI).all()):
        raise ModelError(f"{name} is not finite; the training diverged, so it has no directions")
    if not bool(update_OI.any()):
        return torch.zeros(update_OI.shape[0], 0, dtype=torch.float64, device=update_OI.device)
    return leading_directions(update_OI, k)


def overlap(one_Ok: Tensor, other_Ok: Tensor) -> Overlap | None:
    """Compare two orthonormal bases over as many directions as both have.

    Args:
        one_Ok: Shape (O, k), the most important column first.
        other_Ok: Shape (O, k'), on the same device.

    Returns:
        None where one of them is empty (a zero update).

    Source:
        Björck and Golub 1973 (principal angles); Hu et al. 2021, arXiv:2106.09685,
        section 7.2, whose measure of similarity between subspaces is `overlap`.
    """
    k = min(one_Ok.shape[1], other_Ok.shape[1])
    if k == 0:
        return None
    one_Ok, other_Ok = one_Ok[:, :k], other_Ok[:, :k]
    cosines_k = torch.linalg.svdvals(one_Ok.T @ other_Ok).clamp(max=1)
    # Arc cosine loses small angles; the sine of each is the length of what lies outside.
    outside_Ok = other_Ok - one_Ok @ (one_Ok.T @ other_Ok)
    sines_k = torch.linalg.svdvals(outside_Ok).flip(0)[:k].clamp(max=1)
    angles_k = torch.where(cosines_k**2 > 0.5, sines_k.asin(), cosines_k.acos())
    share = float(cosines_k.square().sum()) / k
    noise = k / one_Ok.shape[0]
    return Overlap(k, min(1.0, share), noise, tuple(map(float, angles_k.cpu())))


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


def leading_energy(base_OI: Tensor, update_OI: Tensor, k: int) -> dict[str, float]:
    """How much of an update lies in the leading singular directions of its base.

    Of W = U S Vᵀ the k first are taken; of a base of lower rank as many as it has. What an
    update has there changes what the base does most; OPLoRA lets it have nothing there.

    Args:
        base_OI: Shape (O, I), float32.
        update_OI: dW, the same shape; not zero.
        k: Leading directions.

    Returns:
        Shares of ||dW||², 0 to 1: "left" ||U_kᵀ dW||², "right" ||dW V_k||², "both"
        ||U_kᵀ dW V_k||². Noise has k / O, k / I and their product.

    Source:
        arXiv:2510.13003 (OPLoRA); which of the three its measure is was not open to us, so all
        three are told.
    """
    whole = float(torch.linalg.vector_norm(update_OI, dtype=torch.float64))
    left_Ok = leading_directions(base_OI, k)
    # Wᵀ u_i = s_i v_i: orthogonal but for rounding, which QR takes out.
    right_Ik = torch.linalg.qr((base_OI.T @ left_Ok.float()).double()).Q.float()
    rows_kI = left_Ok.float().T @ update_OI
    parts = {"left": rows_kI, "right": update_OI @ right_Ik, "both": rows_kI @ right_Ik}
    norms = {name: torch.linalg.vector_norm(p, dtype=torch.float64) for name, p in parts.items()}
    return {name: min(1.0, float(norm / whole) ** 2) for name, norm in norms.items()}


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
