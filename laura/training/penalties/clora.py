"""CLoRA: the update shall have no part in a random subspace, (|A P|^2 + |B^T P'|^2) / 2.

P and P' are orthonormal, drawn once, of 512 columns (the paper's k) and at most half as many as
they have rows; maps of one width share them, and so do all runs.
Source: arXiv:2410.16801.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

COLUMNS = 512


def pull(name: str, parameter: Tensor) -> Tensor | None:
    """Gradient of the penalty by one of LoRA's factors, A (1, r, in) or B (1, out, r)."""
    if name.endswith(".A"):
        p_IK = _subspace(parameter.shape[2], parameter.device)
        return (parameter @ p_IK) @ p_IK.T
    if name.endswith(".B"):
        p_OK = _subspace(parameter.shape[1], parameter.device)
        return p_OK @ (p_OK.T @ parameter)
    return None


@functools.cache
def _subspace(width: int, device: torch.device) -> Tensor:
    """Orthonormal columns (width, k), the same on every device and in every run."""
    drawn = torch.empty(width, max(1, min(COLUMNS, width // 2)))
    nn.init.orthogonal_(drawn, generator=torch.Generator().manual_seed(width))
    return drawn.to(device)
