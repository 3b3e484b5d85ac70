"""Draws against transformers' own logits processors and against counting."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from laura.engine import sampler
from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest
from laura.engine.sampler import Draw, choose, most_likely
from laura.results.errors import UsageError

SETTINGS = [
    (0.7, 1.0, 0),
    (0.2, 0.95, 0),
    (1.0, 0.9, 0),
    (1.3, 0.8, 7),
    (1.0, 1.0, 3),
    (2.0, 1e-6, 0),
]


def expected_chances(logits: torch.Tensor, heat: float, top_p: float, top_k: int) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(heat)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]).softmax(-1)[0]


@pytest.mark.parametrize("first_look", [2, 64])
@pytest.mark.parametrize(("heat", "top_p", "top_k"), SETTINGS)
def test_draws_follow_transformers_chances(
    monkeypatch: pytest.MonkeyPatch, heat: float, top_p: float, top_k: int, first_look: int
) -> None:
    monkeypatch.setattr(sampler, "FIRST_LOOK", first_look)
    torch.manual_seed(0)
    logits = torch.randn(200) * 2
    chances = expected_chances(logits, heat, top_p, top_k)
    count = 4000
    draws = [Draw(heat, top_p, top_k, random.Random(seed)) for seed in range(count)]
    drawn = choose(logits.expand(count, -1), draws)
    shares = torch.bincount(torch.tensor(drawn), minlength=200) / count
    assert not shares[chances == 0].any(), "nothing is drawn that is cut off"
    # Five standard errors of a share, for each of 200 tokens.
    margin = 5 * (chances * (1 - chances) / count).sqrt() + 1e-6
    assert bool(((shares - chances).abs() <= margin).all())


@pytest.mark.parametrize("spread", [3.0, 6.0])
def test_equals_are_drawn_alike_beside_any_neighbour(spread: float) -> None:
    """A bf16 output map gives many equal logits; their order must not decide."""
    torch.manual_seed(0)
    # This neighbour's share needs the whole vocabulary sorted.
    flat = torch.zeros(1, 5000)
    for seed in range(300):
        row = (torch.randn(1, 5000) * spread).bfloat16().float()
        alone = choose(row, [Draw(0.8, 0.95, 0, random.Random(seed))])
        draws = [Draw(0.8, 0.95, 0, random.Random(seed)), Draw(1.0, 0.95, 0, random.Random(1))]
        assert choose(torch.cat([row, flat]), draws)[:1] == alone


def test_samples_do_not_depend_on_their_neighbours(tiny_model: Any, tiny_tokenizer: Any) -> None:
    prompts = ["the dog ran", "question: how many cats? answer", "a", "1 2 3 4 5 6 7"]
    requests = [
        GenerateRequest(prompt, (), 15, temperature=1.5, top_p=0.95, seed=seed, logprobs=True)
        for prompt in prompts
        for seed in range(2)
    ]
    engine = Engine(tiny_model, tiny_tokenizer)
    engine.cache_bytes = engine.runner.geometry.row_bytes(40) * 5
    together = engine.generate(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert (alone.text, alone.tokens) == (answer.text, answer.tokens)
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-4)
    assert len({answer.text for answer in together}) == len(requests)
    backwards = engine.generate(requests[::-1])[::-1]
    assert [answer.text for answer in backwards] == [answer.text for answer in together]


@pytest.mark.parametrize(
    "changes",
    [{"temperature": -0.1}, {"temperature": 1e-40}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}],
)
def test_settings_out_of_range_are_named(
    tiny_model: Any, tiny_tokenizer: Any, changes: dict[str, Any]
) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=f"{name} is .*allowed is"):
        Engine(tiny_model, tiny_tokenizer).generate([GenerateRequest("a", (), 3, **changes)])


@pytest.mark.parametrize("vocabulary", [512, 500])
@pytest.mark.parametrize("answers", [1, 7])
def test_the_most_likely_is_the_first_of_the_highest(vocabulary: int, answers: int) -> None:
    torch.manual_seed(0)
    for turn in range(6):
        logits = torch.randn(answers, vocabulary).mul(turn).round()
        for way in (logits, logits.t().contiguous().t()):
            ids = most_likely(way)
            best = logits.gather(1, ids[:, None])[:, 0]
            assert best.equal(logits.amax(-1)) and ids.equal(logits.argmax(-1))
    logits[0, 77] = float("nan")
    assert logits[0, most_likely(logits.t().contiguous().t())[0]].isnan()
