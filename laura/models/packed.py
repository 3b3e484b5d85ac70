"""A linear map whose weight lies as the processor's product wants it.

oneDNN packs a weight once and then needs no further copy of it in any pass. Two rows or
more: each row's result is the same to the last bit whatever its neighbours are, which an
answer in a batch owes to the same answer alone; so a single row is computed as two.

Shapes: N rows, I in, O out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from laura.models.device import linear


class PackedMap:
    """W x + b for weights that are never trained; the given weight need not be kept.

    Args:
        weight_OI: float32 or bfloat16.
        bias_O: Of the same type, if there is one.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.dtype, self.bias = weight_OI.dtype, bias_O
        self.bytes = weight_OI.numel() * weight_OI.element_size()
        self._packs = weight_OI.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self._weight = _OPS._reorder_linear_weight(weight_OI) if self._packs else weight_OI

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The map's output (N, O) for x in the weight's type."""
        if not self._packs:
            return linear(x_NI, self._weight, self.bias)
        rows = pad(x_NI, (0, 0, 0, 1)) if len(x_NI) == 1 else x_NI
        found: Tensor = _OPS._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return found[: len(x_NI)]


_OPS: Any = torch.ops.mkldnn
