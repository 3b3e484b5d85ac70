"""How much of two updates of one matrix lies in the same directions.

Shapes: O outputs, I inputs, R rank of a LoRA update, k leading directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laura.analysis.intruders import leading_directions
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
