"""In float32 an answer in company has the very numbers of the same answer alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from laura.engine.sequence import TokenSequence
from tests.engine.alone import ATTENTION, MLP, Heard, hear, made_adapter, one_answer, serving, tiny

TEXTS = ["the dog ran", "a cat", "question: how many cats? "]


def test_scores_have_the_same_bits_in_company(tiny_tokenizer: Any) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.backends.mkldnn.is_available() or capability != "AVX512":
        pytest.skip(f"the kernels for {capability} may sum in another order")
    kinds = [(4, (*ATTENTION, *MLP))] * 4 + [(2, MLP), (16, ATTENTION[:3:2])]
    source = random.Random(1)
    # What is kept of a prompt was computed in a pass of another length: no prefix cache.
    with serving(tiny(), tiny_tokenizer, cache_bytes=2**25, slots=8, prefix_share=0) as engine:
        placed = [
            engine.runner.slots.place(str(i), "", *made_adapter(i, *kind))
            for i, kind in enumerate(kinds)
        ]

        def drawn() -> dict[str, Any]:
            text = source.choice(TEXTS) * source.choice([1, 2, 5])
            return {
                "prompt": tuple(tiny_tokenizer.encode(text)),
                "limit": source.choice([10, 30, 70, 140]),
                "slot": source.choice([None, *placed]),
            }

        wanted = [drawn() for _ in range(24)]
        settings: dict[str, Any] = {"owner": "t", "top": 2, "ignore_end": True}
        alone = [one_answer(engine, TokenSequence(**one, **settings)) for one in wanted]
        together = [TokenSequence(**one, **settings) for one in wanted]
        heard: dict[TokenSequence, Heard] = {}
        for number, one in enumerate(together):
            engine.add(one)
            hear(engine, heard, steps=number % 3)
        hear(engine, heard)
        for own, one in zip(alone, together, strict=True):
            assert heard[one].scores == own.scores
