"""A linear map whose weight lies as the processor's product wants it.

oneDNN packs a weight once and then needs no further copy of it in any pass. Two rows or
more: each row's result is the same to the last bit whatever its neighbours are, which an
answer in a batch owes to the same answer alone; so a single row is computed as two. The
same holds for a weight that is not packed, with the same bits.

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
        shared: Whether others keep the weight too, as a tied embedding does: it is not packed
            then, so that it is held once. From some ten rows on that is slower (SmolLM2-135M's
            output map, 32 rows, two cores: 14 ms against 10 in float32, 9 against 5 in bfloat16).
    """

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None = None, shared: bool = False
    ) -> None:
        self.dtype, self.bias = weight_OI.dtype, bias_O
        self.bytes = weight_OI.numel() * weight_OI.element_size()
        self._plain = weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available()
        stays = shared or self._plain
        self._weight = weight_OI if stays else _OPS._reorder_linear_weight(weight_OI)

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The map's output (N, O) for x in the weight's type."""
        if self._plain:
            return linear(x_NI, self._weight, self.bias)
        rows = pad(x_NI, (0, 0, 0, 1)) if len(x_NI) == 1 else x_NI
        found: Tensor = _OPS._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return found[: len(x_NI)]


_OPS: Any = torch.ops.mkldnn
