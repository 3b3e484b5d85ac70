"""Does vLLM answer base and adapters rightly, and which of them in one batch?

vLLM 0.32 on a processor answers a base's request with an adapter where both are in one
batch: with that in the last place of the batch's adapters, so nothing is seen of it until
every place is taken. So before anything is offered, all places are filled with adapters that
turn the base's answers upside down; the base and two of them are asked alone, and then
together, several times. What is answered otherwise together than alone is not put together.

The prompt's log-probabilities show the reading of prompts, a greedy answer shows the
writing of new tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from laura.serve.engines import Ask, TokenScore
from laura.serve.vllm_client import BASE, VllmClient, VllmFault

ROUNDS = 3
NEW_TOKENS = 8
PROMPT_TOKENS = 24
TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep until noon."
# Nats by which rounding alone may move an answer: a batch adds in another order.
ROUNDING = {"float32": 0.02, "bfloat16": 0.5, "float16": 0.25}
# The adapters must move the answers by so many times that, or nothing can be told.
CLEAR = 4


class Mixing(Enum):
    """What may share a batch."""

    ALL = "base and adapters together"
    APART = "adapters together, the base apart"
    ALONE = "the base apart, and each adapter apart"
    NONE = "no adapters at all"

    def group(self, adapter: str | None) -> str:
        """Name of the group that a sequence belongs to; groups do not share a batch."""
        if self is Mixing.ALL:
            return ""
        if self is Mixing.APART:
            return BASE if adapter is None else "adapters"
        return adapter or BASE


@dataclass(frozen=True)
class Answer:
    """Log-probabilities of the prompt, and a greedy answer with the two best of each token."""

    prompt: tuple[TokenScore, ...]
    new: tuple[TokenScore, ...]


async def ask_base(client: VllmClient, tokenizer: Any) -> Answer:
    """What the base says while there is nothing beside it.

    Args:
        client: Speaks to a server with no adapter loaded.
        tokenizer: The base's.

    Raises:
        VllmFault: the server does not even answer that.
    """
    return await _ask(client, BASE, _prompt(tokenizer))


async def find_mixing(
    client: VllmClient, before: Answer, probes: dict[str, Path], tokenizer: Any, precision: str
) -> tuple[Mixing, str]:
    """Load the probes, ask, compare, and unload them.

    Args:
        client: Speaks to a server with no adapter loaded.
        before: Of `ask_base`.
        probes: Folders of adapters that change every answer, by name: as many as vLLM has
            places for in a batch, at least two.
        tokenizer: The base's.
        precision: The server's number format.

    Returns:
        What may share a batch, and why no more, in words for the log.

    Raises:
        VllmFault: the server has gone.
    """
    rounding, prompt = ROUNDING[precision], _prompt(tokenizer)
    try:
        for name, folder in probes.items():
            await client.load(name, folder)
        first, *_, last = probes
        alone = {name: await _ask(client, name, prompt) for name in (BASE, first, last)}
        if _distance(before, alone[BASE]) > rounding:
            return Mixing.NONE, "vLLM answers the base otherwise once an adapter is loaded"
        pairs = itertools.combinations(alone.values(), 2)
        if not min(_distance(*pair) for pair in pairs) > CLEAR * rounding:
            return Mixing.NONE, "vLLM answers the same through different adapters"
        found = await _most(client, alone, prompt, rounding)
        for name in probes:
            await client.unload(name)
        if _distance(before, await _ask(client, BASE, prompt)) > rounding:
            return Mixing.NONE, "vLLM answers the base otherwise once an adapter was loaded"
    except VllmFault as error:
        if error.status == 0:
            raise
        return Mixing.NONE, f"vLLM cannot answer with an adapter ({error})"
    return found


def _prompt(tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer.encode(TEXT)[:PROMPT_TOKENS])


async def _most(
    client: VllmClient, alone: dict[str, Answer], prompt: tuple[int, ...], rounding: float
) -> tuple[Mixing, str]:
    """The most that is answered together as it is alone."""
    why = ""
    for mixing in (Mixing.ALL, Mixing.APART, Mixing.ALONE):
        wrong = await _wrong(client, mixing, alone, prompt, rounding)
        if not wrong:
            return mixing, why
        why = why or f"vLLM answers {wrong} wrongly where base and adapters share a batch"
    return Mixing.NONE, why


async def _wrong(
    client: VllmClient,
    mixing: Mixing,
    alone: dict[str, Answer],
    prompt: tuple[int, ...],
    rounding: float,
) -> str:
    """Who is answered otherwise than alone, where so much is put together; empty for nobody."""
    groups: dict[str, list[str]] = {}
    for name in alone:
        groups.setdefault(mixing.group(None if name == BASE else name), []).append(name)
    for turn in range(ROUNDS):
        for members in groups.values():
            # Which one is the last of a batch matters to vLLM 0.32.
            first = turn % len(members)
            names = [*members[first:], *members[:first]] * 2
            answers = await asyncio.gather(*(_ask(client, name, prompt) for name in names))
            for name, answer in zip(names, answers, strict=True):
                if _distance(alone[name], answer) > rounding:
                    return "the base" if name == BASE else "an adapter"
    return ""


async def _ask(client: VllmClient, model: str, prompt: tuple[int, ...]) -> Answer:
    """Both questions at once; nothing comes from a cache."""
    ask = Ask("probe", "", prompt, NEW_TOKENS, top_logprobs=2)
    scored, new = await asyncio.gather(
        client.score(model, ask, secrets.token_hex(8)), _generate(client, model, ask)
    )
    return Answer(scored.prompt, new)


async def _generate(client: VllmClient, model: str, ask: Ask) -> tuple[TokenScore, ...]:
    found: list[TokenScore] = []
    async with contextlib.aclosing(client.stream(model, ask, secrets.token_hex(8))) as pieces:
        async for piece in pieces:
            found += piece.tokens
    return tuple(found)


def _distance(one: Answer, two: Answer) -> float:
    """Largest difference in nats; infinite where a number is none.

    Greedy answers are compared up to where they part; there it counts by how much the
    best token was ahead of the next.
    """
    found = [0.0, *_differences(one.prompt, two.prompt)]
    for a, b in zip(one.new, two.new, strict=False):
        if a.token_id != b.token_id:
            found.append(max(_lead(a), _lead(b)))
            break
        found += _differences([a], [b])
    if len(one.new) != len(two.new) or any(math.isnan(value) for value in found):
        return math.inf
    return max(found)


def _differences(one: Sequence[TokenScore], two: Sequence[TokenScore]) -> list[float]:
    return [
        abs(a.logprob - b.logprob)
        for a, b in zip(one, two, strict=True)
        if a.logprob is not None and b.logprob is not None
    ]


def _lead(score: TokenScore) -> float:
    values = [value for _, value in score.top]
    return values[0] - values[1] if len(values) > 1 else math.inf
