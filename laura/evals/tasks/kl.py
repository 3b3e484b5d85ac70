"""How far the tuned model has drifted from the base, in nats per token: four divergences.

`kl` is the forward divergence KL(base || tuned), sum_v p_base(v) ln(p_base(v) /
p_tuned(v)) over the full vocabulary, at every supervised position of the target
documents, summed and divided by the number of positions. `kl_reverse` is
KL(tuned || base) there; `kl_source` and `kl_reverse_source` are the same two on the
source text. Zero for the base itself. The standard error takes the document as the unit.

Source: Shenfeld, Pari and Agrawal 2025, arXiv:2509.04259 (forward KL on
new-task inputs predicts forgetting; reverse KL does so less well).
"""

from __future__ import annotations

from laura.engine.requests import Direction

VERSION = "1"
METRICS = ("nats_per_token",)


def direction(name: str) -> Direction:
    """Which divergence a task of this file is."""
    return "reverse" if name.startswith("kl_reverse") else "forward"


def other_way(name: str) -> str:
    """The task of the other direction on the same text."""
    forward = direction(name) == "forward"
    return name.replace("kl", "kl_reverse") if forward else name.replace("kl_reverse", "kl")
