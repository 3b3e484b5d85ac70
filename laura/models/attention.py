"""Attention in which packed documents never see one another.

Registered with transformers as "laura" (its public AttentionInterface; nothing
is patched), so any Llama-type model uses it. A forward pass names what it is:

    model(ids, position_ids=..., documents=Documents(lengths))   a packed row
    model(ids, position_ids=..., decode=state)                   one step of generation
    model(ids)                                                   plain causal attention

A packed row costs the sum of the squares of its documents' lengths, not the
square of the row: no T x T mask exists at any time. Documents are gone through one
by one, or in one kernel where there is one for them (`device.varlen_attention`).

Shapes: B batch (1 for a packed row), H heads, G key/value heads, T tokens, D head width,
N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from laura.models.device import copy_to, varlen_attention

NAME = "laura"


class Documents:
    """The documents of a packed row, one after another without padding, for one pass.

    Args:
        lengths: Tokens of each document; their sum is the row's T.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = [int(length) for length in lengths]
        self._starts: Tensor | None = None

    def attend(
        self, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scaling: float, drop: float
    ) -> Tensor:
        """Causal attention within each document; (B, H, T, D)."""
        kernel = varlen_attention(query_BHTD.device, query_BHTD.dtype, query_BHTD.shape[-1])
        if kernel is not None and not drop and len(self.lengths) > 1:
            return self._at_once(kernel, query_BHTD, key_BGTD, value_BGTD, scaling)
        pieces = zip(
            query_BHTD.split(self.lengths, dim=2),
            key_BGTD.split(self.lengths, dim=2),
            value_BGTD.split(self.lengths, dim=2),
            strict=True,
        )
        outputs = [
            grouped_attention(query, key, value, None, scaling, drop)
            for query, key, value in pieces
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _at_once(
        self,
        kernel: Callable[..., Any],
        query_BHTD: Tensor,
        key_BGTD: Tensor,
        value_BGTD: Tensor,
        scaling: float,
    ) -> Tensor:
        rows, heads, tokens, _ = query_BHTD.shape
        if self._starts is None:  # the same for all layers
            ends = torch.tensor([0, *self.lengths * rows]).cumsum(0, dtype=torch.int32)
            self._starts = copy_to(ends, query_BHTD.device)
        # Maps lay heads of a token side by side: these are views.
        inputs_NHD = [x.transpose(1, 2).flatten(0, 1) for x in (query_BHTD, key_BGTD, value_BGTD)]
        starts, longest = [self._starts] * 2, [max(self.lengths)] * 2
        causal, grouped = (-1, 0), heads != key_BGTD.shape[1]
        output_NHD = kernel(
            *inputs_NHD, *starts, *longest, scale=scaling, window_size=causal, enable_gqa=grouped
        )
        output_BHTD: Tensor = output_NHD.unflatten(0, (rows, tokens)).transpose(1, 2)
        return output_BHTD


class Decoding(Protocol):
    """A step of generation that keeps its own keys and values (see engine/kv_cache.py)."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention of the new tokens over everything before; (B, T, H, D)."""


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    drop: float = 0.0,
) -> Tensor:
    """Attention (B, H, T, D) with query heads that may share key heads; causal without a mask."""
    grouped = query.shape[1] != key.shape[1]
    output: Tensor = scaled_dot_product_attention(
        query, key, value, mask, drop, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return output


def laura_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    decode: Decoding | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer; output (B, T, H, D)."""
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    # Under autocast the rotation leaves query and key in float32, value in bf16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if decode is not None:
        return decode.attend(int(module.layer_idx), query, key, value, scale), None  # type: ignore[arg-type]
    if documents is not None:
        output = documents.attend(query, key, value, scale, dropout)
    else:
        output = grouped_attention(query, key, value, attention_mask, scale, dropout)
    return output.transpose(1, 2), None


def register() -> None:
    """Make "laura" known to transformers; calling it again changes nothing.

    No mask is made for it: the documents themselves say who sees whom, and looking for
    documents in the positions would have every pass wait for an accelerator.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, laura_attention)
