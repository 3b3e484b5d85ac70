"""OFT, a rotation of a weight's inputs in blocks, as an adapter of the house and as PEFT's file.

    y = W Rᵀ x,   R = blockdiag(R_1, ..., R_n),   R_i = (I - Q_i)(I + Q_i)⁻¹ (Cayley)

Q_i is skew, b x b, and its upper triangle, row by row, is what is trained; it starts at zero, so
that R is the identity. An adapter at a scale of a rotates by a Q. What is computed is R - I, from
which x is changed: in bfloat16 R itself would be the identity to three digits, and a new adapter
is its base bit for bit.

PEFT's default is a sum in place of the inverse, of Q with the other sign, which is no exact
rotation; files made with it are read (`terms`), and we train and write the exact one
(`use_cayley_neumann: false`).

Source: Qiu et al. 2023, arXiv:2306.07280; sides and signs are those of PEFT 0.21, tuners/oft.
Shapes: S slots, n blocks, b block size, P = b (b - 1) / 2, I = n b in, O out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laura.models.device import arithmetic, exact
from laura.models.lora import LoraLinear, LoraSettings
from laura.models.lora_variants import Mark
from laura.results.errors import AdapterError

OFT_R = "oft_R.weight"
OFT_TURN = "oft_turn"
# Of a stranger's sum, which takes a product of matrices each; it is near the inverse long before.
MOST_TERMS = 20


class OftLinear(LoraLinear):
    """A frozen Linear whose inputs are rotated.

    Args:
        block_size: b, which divides the inputs.
        terms: Of PEFT's sum; 0 for Cayley's rotation itself.
    """

    def __init__(self, *arguments: Any, block_size: int, terms: int = 0) -> None:
        self.block_size, self.terms = block_size, terms
        self._kept: dict[int, tuple[Mark, float, Tensor]] = {}
        super().__init__(*arguments)

    def _draw(self, rank: int, slots: int) -> None:
        weight_OI, b = self.base.weight, self.block_size
        shape = (slots, self.base.in_features // b, b * (b - 1) // 2)
        self.R = nn.Parameter(torch.zeros(shape, device=weight_OI.device))

    @property
    def multiplied(self) -> int:
        """Numbers that a token is multiplied by besides the weight."""
        return self.base.in_features * self.block_size

    def turn(self, slot: int) -> Tensor:
        """R - I of one slot, (n, b, b), float32; kept while no weight changes, for generation."""
        if torch.is_grad_enabled():
            self._kept.clear()  # a fused optimiser writes without counting up versions
            return self._turned(slot)
        mark, scale, turn = self._kept.get(slot, (None, 0.0, None))
        if turn is None or mark is None or not mark.fits((self.R,)) or scale != self.scales[slot]:
            turn = self._turned(slot)
            self._kept[slot] = Mark((self.R,)), self.scales[slot], turn
        return turn

    def _turned(self, slot: int) -> Tensor:
        return turn_of(self.R[slot].float() * self.scales[slot], self.block_size, self.terms)

    def update(self, slot: int = 0) -> Tensor:
        """Tuned minus base weight, W (R - I)ᵀ, (out, in), float32."""
        return rotated(self.base.weight.float(), self.turn(slot).mT) - self.base.weight.float()

    def tuned(self, slot: int = 0) -> Tensor:
        """The weight that one slot stands for, (out, in), float32."""
        return rotated(self.base.weight.float(), self.turn(slot).mT)

    def _adapted(self, x: Tensor, slot: int) -> Tensor:
        x = self.route.cast(x, arithmetic(x))
        return self._mapped(rotated(x, self.turn(slot)), self.base.bias)

    def _by_segments(self, x: Tensor) -> Tensor:
        parts = zip(self.route.segments or (), self._split(x), strict=True)
        turned = [
            part if slot is None else rotated(part, self.turn(slot)) for (slot, _), part in parts
        ]
        return self._mapped(torch.cat(turned).reshape(x.shape), self.base.bias)


def turn_of(angles_nP: Tensor, b: int, terms: int) -> Tensor:
    """R - I, (n, b, b), of the upper triangles of Q, float32; `terms` of PEFT's sum, or 0."""
    upper = angles_nP.new_zeros(len(angles_nP), b, b)
    rows, columns = torch.triu_indices(b, b, 1, device=upper.device)
    upper[:, rows, columns] = angles_nP
    skew = upper - upper.mT
    with exact(skew.device):
        if not terms:
            eye = torch.eye(b, device=skew.device)
            exactly: Tensor = torch.linalg.solve(eye + skew, -2 * skew)
            return exactly
        power = skew @ skew
        turn = 2 * skew + 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            turn = turn + 2 * power
        return turn + power @ skew


def with_turns(settings: LoraSettings, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's weights by their names in the file, and of OFT each map's R - I, `OFT_TURN`."""
    b, terms = settings.block_size, settings.terms
    turns = {
        f"{name.removesuffix(OFT_R)}{OFT_TURN}": turn_of(angles_nP.float(), b, terms)
        for name, angles_nP in (tensors.items() if b else ())
    }
    return {**tensors, **turns}


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """x with each block of its last dimension multiplied by R, given R - I (n, b, b)."""
    blocks = x.unflatten(-1, turn.shape[:2])
    return x + torch.einsum("...nb,nbc->...nc", blocks, turn.to(x.dtype)).flatten(-2)


def oft_config(settings: LoraSettings) -> dict[str, Any]:
    """What PEFT's configuration says of OFT alone."""
    return {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": settings.block_size,
        "use_cayley_neumann": settings.terms > 0,
        "num_cayley_neumann_terms": settings.terms or 5,
        "module_dropout": 0.0,
        "coft": False,
        "block_share": False,
        "init_weights": True,
    }


def oft_settings(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], prefix: str, folder: Path
) -> LoraSettings:
    """Settings of OFT in PEFT's format, with targets by full module name.

    Raises:
        AdapterError: the weights are not OFT's, or of blocks of several sizes.
    """
    names = {name[len(prefix) :].removesuffix(f".{OFT_R}"): shapes[name] for name in shapes}
    numbers = {shape[-1] if len(shape) == 2 else 0 for shape in names.values()}
    b = round((1 + math.sqrt(1 + 8 * max(numbers))) / 2)
    terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann") else 0
    ours = all(name.endswith(f".{OFT_R}") for name in shapes)
    if not ours or numbers != {b * (b - 1) // 2} or b < 2:
        raise AdapterError(f"{folder} says OFT, and its weights are not {OFT_R} of one block size")
    if type(terms) is not int or (terms and not 3 <= terms <= MOST_TERMS):
        raise AdapterError(
            f"{folder} has num_cayley_neumann_terms {terms!r:.40}; 3 to {MOST_TERMS} are read"
        )
    return LoraSettings(rank=1, alpha=1.0, targets=tuple(sorted(names)), block_size=b, terms=terms)
