"""PiSSA: A and B start with the leading singular directions of the weight.

    W = U S Vᵀ,   B0 = U_r (S_r / s)^½,   A0 = (S_r / s)^½ V_rᵀ
    y = (W - s B0 A0) x + s B A x,        update = s (B A - B0 A0)

The weight itself stays whole: the residual is never written out, B0 A0 is taken off
beside it. So the base is there whenever no slot is routed, what is trained is exactly
what is saved, and the file is a plain adapter of rank 2r on the base, A' = [A; A0],
B' = [B, -B0], as PEFT's conversion makes it.

Source: Meng et al. 2024, arXiv:2404.02948.
Shapes: S slots, R rank, I in, O out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laura.models.lora import LoraLinear, LoraSettings


class PissaLinear(LoraLinear):
    """A frozen Linear whose updates start at its leading singular directions.

    The start is a buffer, so that a run which goes on elsewhere, where the decomposition
    may round otherwise, has the same one.
    """

    start_A: Tensor
    start_B: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        rank, scale = self.A.shape[1], self.scales[0]
        u_OK, s_K, v_KI = torch.linalg.svd(self.base.weight.detach().float(), full_matrices=False)
        root_R = (s_K[:rank] / scale).sqrt()
        self.register_buffer("start_A", root_R[:, None] * v_KI[:rank])
        self.register_buffer("start_B", u_OK[:, :rank] * root_R)
        with torch.no_grad():
            self.A.copy_(self.start_A.expand_as(self.A))
            self.B.copy_(self.start_B.expand_as(self.B))

    def factors(self, slot: int) -> tuple[Tensor, Tensor]:
        """A' (2R, I) and B' (O, 2R), whose product is BA - B0 A0."""
        a_RI, b_OR = self.A[slot], self.B[slot]
        return torch.cat([a_RI, self.start_A]), torch.cat([b_OR, -self.start_B], dim=1)


def plain_settings(settings: LoraSettings) -> LoraSettings:
    """Settings of the plain adapter that a PiSSA adapter is saved as: rank 2r, the same scale."""
    grown = math.sqrt(2) if settings.rslora else 2
    return replace(
        settings,
        pissa=False,
        rank=2 * settings.rank,
        alpha=grown * settings.alpha,
        rank_pattern={name: 2 * rank for name, rank in settings.rank_pattern.items()},
        alpha_pattern={name: grown * alpha for name, alpha in settings.alpha_pattern.items()},
    )
