"""Linear maps of which the weight is held in four bits, as QLoRA holds a frozen base.

bitsandbytes quantises and dequantises. Of each 64 weights of a matrix, row by row, the largest
magnitude is their scale; a weight is the nearest of NF4's 16 quantiles of a normal distribution,
times that. The scales, less their mean, are held in 8 bits, 256 of them with one float32 scale
(double quantisation): 4.127 bits a weight in all, where float32 scales would take 4.5.

A pass dequantises a matrix to its arithmetic, multiplies and forgets it; the gradient of its
input dequantises it once more. So what is trained beside it is trained at full precision.

bitsandbytes' own layer (`Linear4bit`) is not used: it stays in the arithmetic of its first pass,
and on processors with bf16 arithmetic an evaluation lays its weight out anew, after which no
gradient goes through it.

Source: Dettmers et al. 2023, arXiv:2305.14314. Shapes: I in, O out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from laura.models.device import arithmetic
from laura.results.errors import MissingExtraError

SETTINGS: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}


class Nf4Linear(nn.Linear):
    """A frozen Linear, its weight in NF4; made where the given Linear is.

    Args:
        linear: Whose weight is quantised, float32, bfloat16 or float16; its bias is kept as it is.

    Attributes:
        packed: Two weights a byte; no part of a state dict, since nothing is ever trained in it.
        state: bitsandbytes' scales, shape and number format of the weight.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)  # a Linear's own would make a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        packed, self.state = quantize_4bit(linear.weight.detach(), **SETTINGS)
        self.register_buffer("packed", packed, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (O, I) that it stands for, in the number format it was given; made anew."""
        from bitsandbytes.functional import dequantize_4bit

        weight_OI: Tensor = dequantize_4bit(self.packed, self.state)
        return weight_OI

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., O), in the arithmetic of the pass."""
        return self.mapped(x, self.bias)

    def mapped(self, x: Tensor, bias_O: Tensor | None) -> Tensor:
        """W x + b with another bias, or none."""
        from bitsandbytes import matmul_4bit

        dtype = arithmetic(x)
        bias_O = None if bias_O is None else bias_O.to(dtype)
        y: Tensor = matmul_4bit(x.to(dtype), self.packed, self.state, bias=bias_O)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.state.to(self.packed.device)
        return self


def rounded(matrix_OI: Tensor) -> Tensor:
    """A matrix as it is once it has been quantised and dequantised, in its own number format."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    made_OI: Tensor = dequantize_4bit(*quantize_4bit(matrix_OI, **SETTINGS))
    return made_OI


def check_installed() -> None:
    """Check that bitsandbytes is there.

    Raises:
        MissingExtraError: the extra `quantization` is not installed.
    """
    # On some processors it tells of a kernel that it misses, which its own layer alone would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "base.quantization: nf4 needs bitsandbytes: "
            "python -m pip install 'laura-lab[quantization]'"
        ) from error
