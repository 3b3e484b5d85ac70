"""Attention in which packed documents never see one another.

Registered with transformers as "laura" (its public AttentionInterface; nothing
is patched), so every model that Laura runs uses it. A forward pass names what it is:

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
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from laura.models.device import copy_to, varlen_attention

NAME = "laura"


@dataclass(frozen=True)
class Scoring:
    """What a layer makes of the products of queries and keys before their softmax.

    Attributes:
        scaling: Their factor.
        window: Most tokens that one sees, itself among them; None for all before it.
        softcap: c of c tanh(score / c); None for the score itself (Gemma 2, arXiv:2408.00118).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None

    def of(self, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """The scores; the mask is added, or says (True) who is seen."""
        scores = products * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is None:
            return scores
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


class Documents:
    """The documents of a packed row, one after another without padding, for one pass.

    Args:
        lengths: Tokens of each document; their sum is the row's T.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = [int(length) for length in lengths]
        self._starts: Tensor | None = None

    def attend(
        self, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scores: Scoring, drop: float
    ) -> Tensor:
        """Causal attention within each document; (B, H, T, D)."""
        kernel = varlen_attention(query_BHTD.device, query_BHTD.dtype, query_BHTD.shape[-1])
        if kernel is not None and not drop and len(self.lengths) > 1 and scores.softcap is None:
            return self._at_once(kernel, query_BHTD, key_BGTD, value_BGTD, scores)
        pieces = zip(
            query_BHTD.split(self.lengths, dim=2),
            key_BGTD.split(self.lengths, dim=2),
            value_BGTD.split(self.lengths, dim=2),
            strict=True,
        )
        outputs = [
            grouped_attention(query, key, value, None, scores, drop) for query, key, value in pieces
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _at_once(
        self,
        kernel: Callable[..., Any],
        query_BHTD: Tensor,
        key_BGTD: Tensor,
        value_BGTD: Tensor,
        scores: Scoring,
    ) -> Tensor:
        rows, heads, tokens, _ = query_BHTD.shape
        if self._starts is None:  # the same for all layers
            ends = torch.tensor([0, *self.lengths * rows]).cumsum(0, dtype=torch.int32)
            self._starts = copy_to(ends, query_BHTD.device)
        # Maps lay heads of a token side by side: these are views.
        inputs_NHD = [x.transpose(1, 2).flatten(0, 1) for x in (query_BHTD, key_BGTD, value_BGTD)]
        starts, longest = [self._starts] * 2, [max(self.lengths)] * 2
        causal, grouped = ((scores.window or 0) - 1, 0), heads != key_BGTD.shape[1]
        output_NHD = kernel(
            *inputs_NHD, *starts, *longest,
            scale=scores.scaling, window_size=causal, enable_gqa=grouped,
        )  # fmt: skip
        output_BHTD: Tensor = output_NHD.unflatten(0, (rows, tokens)).transpose(1, 2)
        return output_BHTD


class Decoding(Protocol):
    """A step of generation that keeps its own keys and values (see engine/kv_cache.py)."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scoring
    ) -> Tensor:
        """Attention of the new tokens over everything before; (B, T, H, D)."""


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scores: Scoring,
    drop: float = 0.0,
) -> Tensor:
    """Attention (B, H, T, D) with query heads that may share key heads.

    Without a mask it is causal, within the window; a mask leaves out what the window does.
    """
    if mask is None and scores.window is not None and scores.window < query.shape[2]:
        return _windowed_attention(query, key, value, scores, drop)
    grouped = query.shape[1] != key.shape[1]
    if scores.softcap is None:
        output: Tensor = scaled_dot_product_attention(
            query, key, value, mask, drop,
            is_causal=mask is None, scale=scores.scaling, enable_gqa=grouped,
        )  # fmt: skip
        return output
    # torch's kernels know no cap: the weights of all pairs are there at once.
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    weights = scores.of(query @ key.mT, mask).softmax(-1, dtype=torch.float32).to(value.dtype)
    return dropout(weights, drop) @ value


def _windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, scores: Scoring, drop: float
) -> Tensor:
    """Causal attention of more tokens than the window, one window of queries after another."""
    assert scores.window is not None
    outputs = []
    for start in range(0, query.shape[2], scores.window):
        end, first = min(start + scores.window, query.shape[2]), max(0, start - scores.window + 1)
        seen = torch.ones(end - start, end - first, dtype=torch.bool, device=query.device)
        mask = seen.tril(start - first).triu(start - first - scores.window + 1)
        keys, values = key[:, :, first:end], value[:, :, first:end]
        outputs.append(grouped_attention(query[:, :, start:end], keys, values, mask, scores, drop))
    return torch.cat(outputs, dim=2)


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer; output (B, T, H, D)."""
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    scores = Scoring(scale, sliding_window, softcap)
    # Under autocast the rotation leaves query and key in float32, value in bf16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if decode is not None:
        return decode.attend(int(module.layer_idx), query, key, value, scores), None  # type: ignore[arg-type]
    if documents is not None:
        output = documents.attend(query, key, value, scores, dropout)
    else:
        output = grouped_attention(query, key, value, attention_mask, scores, dropout)
    return output.transpose(1, 2), None


def register() -> None:
    """Make "laura" known to transformers; calling it again changes nothing.

    No mask is made for it: the documents themselves say who sees whom, and looking for
    documents in the positions would have every pass wait for an accelerator.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, laura_attention)
