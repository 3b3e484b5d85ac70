"""LoRA that starts where the base reads little: LoRA-Null and CorDA, by activations on source text.

    C = mean over texts of X Xᵀ,   X the inputs of a map on a text, divided by its largest

LoRA-Null: A and B start as the weight's part in the r directions of least activation, N:

    B0 A0 = W N Nᵀ / s

CorDA, knowledge kept: as the last r singular directions of W C, brought back; to the diagonal of
C one percent of its mean is added, so that it has an inverse.

    W C = U S Vᵀ,   B0 A0 = U_r S_r V_rᵀ C⁻¹ / s

As with PiSSA, B0 A0 is taken off beside the whole weight, and a file is a plain adapter of rank
2r. Both factors are trained, as in CorDA and in the first of the two ways of LoRA-Null.

Source: Tang et al. 2025, arXiv:2503.02659; Yang et al. 2024, arXiv:2406.05223, in details as PEFT
0.21 has it (tuners/lora/corda.py). Computed in float64 on the processor, once for each run.
Shapes: T tokens, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from laura.models.device import exact
from laura.models.lora_variants import PissaLinear
from laura.results.progress import SILENT, Progress

TEXTS = 256


class _OfActivations(PissaLinear):
    def __init__(self, *arguments: Any, moment_II: Tensor) -> None:
        self._moment = moment_II
        super().__init__(*arguments)
        del self._moment

    def _weight_and_moment(self) -> tuple[Tensor, Tensor]:
        return self.base.weight.detach().cpu().double(), self._moment.double()


class NullLinear(_OfActivations):
    """A frozen Linear whose updates start in the directions of least activation."""

    def _start(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        weight_OI, moment_II = self._weight_and_moment()
        null_IR = torch.linalg.eigh(moment_II).eigenvectors[:, :rank]
        u_OR, s_R, v_RR = torch.linalg.svd(weight_OI @ null_IR, full_matrices=False)
        return u_OR, s_R, v_RR @ null_IR.T


class CordaLinear(_OfActivations):
    """A frozen Linear whose updates start at the last directions of weight and activations."""

    def _start(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        weight_OI, moment_II = self._weight_and_moment()
        moment_II = moment_II + 0.01 * moment_II.diagonal().mean() * torch.eye(len(moment_II))
        u_OK, s_K, v_KI = torch.linalg.svd(weight_OI @ moment_II, full_matrices=False)
        back_RI = torch.linalg.solve(moment_II, v_KI[-rank:], left=False)
        return u_OK[:, -rank:], s_K[-rank:], back_RI


@torch.no_grad()
def input_moments(
    model: Any, texts: Sequence[Sequence[int]], progress: Progress = SILENT
) -> dict[str, Tensor]:
    """C of every linear map but the output's, (I, I) float32 on the processor, by full name.

    Args:
        model: The base; every text is a pass of its own.
        texts: Token IDs of each.
        progress: Told how far it is.
    """
    head, sums = model.get_output_embeddings(), dict[str, Tensor]()

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_TI = inputs[0].flatten(0, -2).float()
        x_TI = x_TI / x_TI.max().abs()
        with exact(x_TI.device):
            sums[name] = sums.get(name, 0) + x_TI.T @ x_TI

    with ExitStack() as stack, progress.bar("reading activations of the base", len(texts)) as bar:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and module is not head:
                handle = module.register_forward_pre_hook(partial(add, name))
                stack.callback(handle.remove)
        for text in texts:
            model.get_decoder()(torch.tensor([list(text)], device=model.device), use_cache=False)
            bar.advance()
    return {name: (total / len(texts)).cpu() for name, total in sums.items()}
