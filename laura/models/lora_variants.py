"""DoRA, PiSSA, MiLoRA and OPLoRA, kinds of LoRA layer.

DoRA: the length of every row of the weight is trained beside its direction.

    y = m * (W x + s B A x) / ||W + s B A||,   one m and one length per output

m starts at the lengths of W. For the gradient the length counts as a constant, as the
paper advises (section 4.3) and PEFT does. With dropout, the part that is added to W x
sees the thinned input, PEFT's reading of where it belongs.

Source: Liu et al. 2024, arXiv:2402.09353.

PiSSA: A and B start with the leading singular directions of the weight.

    W = U S Vᵀ,   B0 = U_r (S_r / s)^½,   A0 = (S_r / s)^½ V_rᵀ
    y = (W - s B0 A0) x + s B A x,        update = s (B A - B0 A0)

The weight itself stays whole: the residual is never written out, B0 A0 is taken off
beside it. So the base is there whenever no slot is routed, what is trained is exactly
what is saved, and the file is a plain adapter of rank 2r on the base, A' = [A; A0],
B' = [B, -B0], as PEFT's conversion makes it.

Source: Meng et al. 2024, arXiv:2404.02948. MiLoRA is the same with the r last directions, those
of least weight, which the base uses least: Wang et al. 2024, arXiv:2406.09044.

OPLoRA: the update leaves the k leading singular directions of the weight alone, on both sides.

    update = s (I - U_k U_kᵀ) B A (I - V_k V_kᵀ)

The projections are taken of B and A, so that the file is a plain adapter of rank r.

Source: arXiv:2510.13003.
Shapes: S slots, R rank, K directions, I in, O out.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from laura.models.device import exact
from laura.models.lora import LoraLinear, LoraSettings

# Rows whose lengths are taken at once: the tuned weight is never held whole.
BLOCK_ROWS = 1024


class DoraLinear(LoraLinear):
    """A frozen Linear with low-rank updates and trained lengths of its rows.

    Attributes:
        magnitude: Lengths m of each slot, (out,) each; vectors of their own, so that
            evaluation in bfloat16 leaves them exact.
        plain: Slots that hold LoRA without lengths.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.plain: set[int] = set()
        self._lengths: dict[int, tuple[Mark, Tensor]] = {}
        start_O = self._measured(0)
        self.magnitude = nn.ParameterList(start_O.clone() for _ in self.scales)

    def gain(self, slot: int) -> Tensor:
        """Factor of every output, magnitude over length, (out,), float32."""
        gain: Tensor = self.magnitude[slot] / self._length(slot)
        return gain

    def tuned(self, slot: int = 0) -> Tensor:
        """The weight that a slot stands for, (out, in), float32."""
        plain = super().tuned(slot)
        return plain if slot in self.plain else self.gain(slot)[:, None] * plain

    def update(self, slot: int = 0) -> Tensor:
        """Tuned minus base weight, (out, in), float32."""
        return self.tuned(slot) - self.base.weight.float()

    def _adapted(self, x: Tensor, slot: int) -> Tensor:
        y = super()._adapted(x, slot)
        if slot in self.plain or not self._in_one_step():
            return y
        # Rounded once, as in PEFT: a gain of 1.010 would be 1.008 in bfloat16.
        return (y * self.gain(slot)).to(y.dtype)

    def _joined(self, x: Tensor, y: Tensor, slot: int) -> Tensor:
        if slot in self.plain:
            return super()._joined(x, y, slot)
        thinned = self._dropped(x)
        if thinned is not x:
            base = self._mapped(thinned, None)
        else:
            base = y if self.base.bias is None else y - self.base.bias
        gain = self.gain(slot)
        return (y + (gain - 1) * base + gain * self._low_rank(thinned, slot)).to(y.dtype)

    def _stretch(self, y: Tensor, slot: int) -> None:
        if slot in self.plain:
            return
        if self.base.bias is None:
            y.mul_(self.gain(slot))
        else:
            y.sub_(self.base.bias).mul_(self.gain(slot)).add_(self.base.bias)

    def _length(self, slot: int) -> Tensor:
        """Lengths of the rows of W + s B A; kept while no weight changes, for generation."""
        if torch.is_grad_enabled():
            # A fused optimiser writes to weights without counting up their version.
            self._lengths.clear()
            return self._measured(slot)
        sources = (*self.base.parameters(), *self.base.buffers(), self.A, self.B)
        kept = self._lengths.get(slot)
        if kept is None or not kept[0].fits(sources):
            kept = self._lengths[slot] = (Mark(sources), self._measured(slot))
        return kept[1]

    @torch.no_grad()
    def _measured(self, slot: int) -> Tensor:
        a_RI, b_OR = (factor.float() for factor in self.factors(slot))
        with exact(a_RI.device):
            rows = zip(self.base.weight.split(BLOCK_ROWS), b_OR.split(BLOCK_ROWS), strict=True)
            lengths = [
                torch.linalg.vector_norm(
                    torch.addmm(weight.float(), b, a_RI, alpha=self.scales[slot]), dim=1
                )
                for weight, b in rows
            ]
        return torch.cat(lengths)


class Mark:
    """Tensors as they were, without keeping them alive."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._seen = [(weakref.ref(tensor), _version(tensor)) for tensor in tensors]

    def fits(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether these are the same ones, not written to since."""
        return all(
            seen() is tensor and version == _version(tensor)
            for (seen, version), tensor in zip(self._seen, tensors, strict=True)
        )


def _version(tensor: Tensor) -> int:
    # An inference tensor has none: it is made for one measurement and never written to.
    return 0 if tensor.is_inference() else tensor._version


class PissaLinear(LoraLinear):
    """A frozen Linear whose updates start at its leading singular directions.

    The start is a buffer, so that a run which goes on elsewhere, where the decomposition
    may round otherwise, has the same one.
    """

    start_A: Tensor
    start_B: Tensor
    leading = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        u_OR, s_R, v_RI = self._start(self.A.shape[1])
        root_R = (s_R / self.scales[0]).sqrt()
        self.register_buffer("start_A", (root_R[:, None] * v_RI).to(self.A))
        self.register_buffer("start_B", (u_OR * root_R).to(self.B))
        with torch.no_grad():
            self.A.copy_(self.start_A.expand_as(self.A))
            self.B.copy_(self.start_B.expand_as(self.B))

    def _start(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """What s B0 A0 is at first: (O, R) times (R,) times (R, I)."""
        u_OK, s_K, v_KI = torch.linalg.svd(self.base.weight.detach().float(), full_matrices=False)
        part = slice(rank) if self.leading else slice(len(s_K) - rank, None)
        return u_OK[:, part], s_K[part], v_KI[part]

    def factors(self, slot: int) -> tuple[Tensor, Tensor]:
        """A' (2R, I) and B' (O, 2R), whose product is BA - B0 A0."""
        a_RI, b_OR = self.A[slot], self.B[slot]
        return torch.cat([a_RI, self.start_A]), torch.cat([b_OR, -self.start_B], dim=1)


class MiloraLinear(PissaLinear):
    """A frozen Linear whose updates start at its last singular directions."""

    leading = False


class OploraLinear(LoraLinear):
    """A frozen Linear whose updates leave its leading singular directions alone.

    These are buffers, for the reason that PiSSA's starts are.

    Args:
        protect: How many, K.
    """

    kept_V: Tensor
    kept_U: Tensor

    def __init__(self, *arguments: Any, protect: int) -> None:
        super().__init__(*arguments)
        u_OK, _, v_KI = torch.linalg.svd(self.base.weight.detach().float(), full_matrices=False)
        self.register_buffer("kept_U", u_OK[:, :protect].contiguous())
        self.register_buffer("kept_V", v_KI[:protect].T.contiguous())

    def factors(self, slot: int) -> tuple[Tensor, Tensor]:
        """A and B without their parts in the kept directions."""
        a_RI, b_OR = self.A[slot], self.B[slot]
        # In float32 also in mixed precision, or the directions would be kept to three digits.
        with exact(a_RI.device):
            return (
                a_RI - (a_RI @ self.kept_V) @ self.kept_V.T,
                b_OR - self.kept_U @ (self.kept_U.T @ b_OR),
            )


def unstarted(settings: LoraSettings) -> LoraSettings:
    """Settings without a start that is taken off."""
    return replace(settings, pissa=False, milora=False, lora_null=False, corda=False)


def plain_settings(settings: LoraSettings) -> LoraSettings:
    """Settings of the plain adapter that PiSSA's and its kind are saved as: rank 2r, as scaled."""
    grown = math.sqrt(2) if settings.rslora else 2
    return replace(
        unstarted(settings),
        rank=2 * settings.rank,
        alpha=grown * settings.alpha,
        rank_pattern={name: 2 * rank for name, rank in settings.rank_pattern.items()},
        alpha_pattern={name: grown * alpha for name, alpha in settings.alpha_pattern.items()},
    )
