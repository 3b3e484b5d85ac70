"""How long a measurement will take, told before it begins.

A few passes on the machine as it is give the time of a token; the rest is counting.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from laura.engine.engine import Engine
from laura.engine.prefix_tree import Text, plan
from laura.engine.requests import GenerateRequest, ScoreRequest

# Requests looked at; the rest is taken to be like them.
SAMPLE = 256
READ_TOKENS = 192
ROWS, STEPS = 16, 4


@dataclass(frozen=True)
class Forecast:
    """What a measurement will take.

    Attributes:
        read: Tokens to read, what is shared counted once.
        written: Most tokens to write.
        seconds: Time; where tokens are written an upper bound, since answers end early.
    """

    read: int
    written: int
    seconds: float

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(
            self.read + other.read, self.written + other.written, self.seconds + other.seconds
        )


@dataclass(frozen=True)
class Pace:
    """Seconds a token takes: read in a full pass, and written beside others."""

    read: float
    written: float


def measure_pace(engine: Engine) -> Pace:
    """Time a pass and a few steps; the first of each, which warms up, does not count."""
    words = " ".join(str(number) for number in range(READ_TOKENS))
    context = engine.encoder.context_tokens
    tokens = engine.tokenizer.encode(words, add_special_tokens=False)
    tokens = tokens[: min(READ_TOKENS, context - 1)]
    text = engine.tokenizer.decode(tokens[:-1])
    times = []
    for mark in ("a", "b"):
        start = time.perf_counter()
        engine.score([ScoreRequest(f"{mark} {text}", " x")])
        times.append((time.perf_counter() - start) / len(tokens))
    request = GenerateRequest("a", (), STEPS)
    asked = [replace(request, prompt=f"{number} a") for number in range(ROWS)]
    start = time.perf_counter()
    engine.generate(asked)
    written = (time.perf_counter() - start) / (ROWS * STEPS)
    return Pace(min(times), written)


def forecast(engine: Engine, requests: Sequence[Any], models: int, pace: Pace) -> Forecast:
    """What so many requests take on so many models.

    Args:
        engine: Whose encoder counts.
        requests: All `ScoreRequest` or all `GenerateRequest`, for one model.
        models: Adapters (or the base) that each are asked all of them.
        pace: From `measure_pace`.
    """
    sample = requests[:SAMPLE]
    if not sample:
        return Forecast(0, 0, 0.0)
    texts = {}
    for request in sample:
        if isinstance(request, ScoreRequest):
            tokens = [t for part in engine.encoder.pair(request.context, request.continuation)
                      for t in part][:-1]  # fmt: skip
        else:
            tokens = engine.encoder.prompt(request.prompt, request.max_new_tokens)
        tokens = tokens[-engine.encoder.context_tokens :]
        texts[tuple(tokens)] = Text(tuple(tokens), [len(tokens) - 1])
    counted = sum(one.tokens for one in plan(list(texts.values()), engine.row_tokens))
    read = models * counted * len(requests) // len(sample)
    written = models * sum(getattr(request, "max_new_tokens", 0) for request in requests)
    return Forecast(read, written, read * pace.read + written * pace.written)
