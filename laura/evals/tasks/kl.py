"""KL(base || tuned) on target inputs, in nats per token.

How far the tuned model has drifted from the base, measured on the new task:
the forward divergence sum_v p_base(v) ln(p_base(v) / p_tuned(v)) over the full
vocabulary, at every supervised position of the target documents, summed and
divided by the number of positions. Zero for the base itself. The standard
error takes the document as the unit.

Source: Shenfeld, Pari and Agrawal 2025, arXiv:2509.04259 (forward KL on
new-task inputs predicts forgetting).
"""

from __future__ import annotations

from collections.abc import Sequence

from laura.evals.scoring import document_item
from laura.models.requests import TokenDocument
from laura.results import Item

VERSION = "1"
METRICS = ("nats_per_token",)


def items(documents: Sequence[TokenDocument], divergences: Sequence[Sequence[float]]) -> list[Item]:
    """One item a document: {"index", "nats", "tokens", "bytes"}.

    Args:
        documents: What was measured.
        divergences: For each document the divergence in nats at every
            supervised position.

    Raises:
        DivergenceError: a divergence is not finite.
    """
    pairs = zip(documents, divergences, strict=True)
    return [document_item(document, nats) for document, nats in pairs]
