"""A linear map whose weight lies as the processor's product wants it.

oneDNN packs a weight once and then needs no further copy of it in any pass. Two rows or
more: each row's result is the same to the last bit whatever its neighbours are, which an
answer in a batch owes to the same answer alone; so a single row is computed as two. The
same holds for a weight that is not packed, with the same bits. Where oneDNN packs nothing of the
weight's format (`device.packs_weights`) the product is torch's own, without that promise.

oneDNN makes a kernel for every number of rows, in milliseconds, and keeps a thousand of
them. Rows are filled up, so that passes of all lengths need few (`filled_rows`).

Shapes: N rows, I in, O out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from laura.models.device import linear, packs_weights

# Each number of rows up to this has kernels of its own: filling up would cost more.
FEW_ROWS = 8


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
        self._plain = not packs_weights(weight_OI.device, self.dtype)
        stays = shared or self._plain
        self._weight = weight_OI if stays else _OPS._reorder_linear_weight(weight_OI)

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The map's output (N, O) for x in the weight's type."""
        if self._plain:
            return linear(x_NI, self._weight, self.bias)
        more = filled_rows(len(x_NI)) - len(x_NI)
        rows = pad(x_NI, (0, 0, 0, more)) if more else x_NI
        found: Tensor = _OPS._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return found[: len(x_NI)]


def filled_rows(rows: int) -> int:
    """How many rows are computed where so many are wanted: at most a quarter more beyond 32."""
    if rows <= FEW_ROWS:
        return max(2, rows)
    piece = 8 if rows <= 64 else 16 if rows <= 128 else 32
    return -(-rows // piece) * piece


_OPS: Any = torch.ops.mkldnn
