"""Clients that ask a server for minutes, and what they count."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.serve.alone import Answer

PERSISTENT, VANISHING = "persistent", "vanishing"


@dataclass(frozen=True)
class Asked:
    """A request, and what it must bring.

    Attributes:
        model: Name for the server.
        body: Either `prompt` or `messages`, and `max_tokens`.
        right: The answer that was computed alone.
    """

    model: str
    body: dict[str, Any]
    right: Answer


@dataclass
class Tally:
    """What was seen.

    Attributes:
        answers: Whole answers, by model.
        tokens: New tokens of whole answers, as the server counts them.
        vanished: Streams that were left in the middle.
        faults: What went wrong, in words.
        first: Seconds until the first piece of each streamed answer.
        resident: Memory of the server (bytes), with the seconds since the beginning.
        held: Adapters that were seen in memory.
    """

    answers: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    vanished: int = 0
    faults: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)

    def told(self) -> dict[str, Any]:
        """Its figures."""
        memory = [size for _, size in self.resident]
        places = (0, len(memory) // 2, -1)
        return {
            "answers": self.answers.total(),
            "tokens": self.tokens,
            "vanished": self.vanished,
            "faults": len(self.faults),
            "seconds to the first token, p50": round(statistics.median(self.first), 3),
            "MiB, first, at half the time, last": [
                round(memory[place] / 2**20, 1) for place in places
            ],
            "MiB, most": round(max(memory) / 2**20, 1),
        }


async def soak(
    url: str,
    asked: Sequence[Asked],
    seconds: float,
    *,
    clients: int,
    vanishing: int,
    resident: Callable[[], int],
) -> Tally:
    """Ask from many clients at once until the time is over, then wait for every answer.

    Before that everything is asked at once, twice: passes are never larger, so memory has then
    been as high as it may get, whenever the clients' chances bring the largest pass.

    Args:
        url: Of the server.
        asked: What to draw from, each client in an order of its own.
        seconds: How long.
        clients: How many there are.
        vanishing: How many of them leave every stream in its middle.
        resident: Memory of the server.
    """
    tally = Tally()
    await _all_at_once(url, asked, tally)
    await _all_at_once(url, asked, tally)
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(url, tally, resident))
        async with asyncio.TaskGroup() as crowd:
            for number in range(clients):
                kind = VANISHING if number < vanishing else PERSISTENT
                crowd.create_task(_client(url, asked, end, tally, (number, kind)))
        watch.cancel()
    return tally


async def _all_at_once(url: str, asked: Sequence[Asked], tally: Tally) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        await asyncio.gather(*(_ask(client, one, number % 2 == 0, tally)
                               for number, one in enumerate(asked)))  # fmt: skip


async def _client(
    url: str, asked: Sequence[Asked], end: float, tally: Tally, who: tuple[int, str]
) -> None:
    chance = random.Random(who[0])
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        while time.monotonic() < end:
            one = chance.choice(asked)
            try:
                if who[1] == VANISHING:
                    await _leave(client, one, chance.randrange(1, 6))
                    tally.vanished += 1
                else:
                    await _ask(client, one, chance.random() < 0.5, tally)
            except openai.OpenAIError as error:
                tally.faults.append(f"{one.model}: {type(error).__name__}: {error}")
            if chance.random() < 0.05:
                await asyncio.sleep(chance.random())  # people pause


async def _ask(client: openai.AsyncOpenAI, one: Asked, streamed: bool, tally: Tally) -> None:
    began = time.monotonic()
    if streamed:
        text, finish, tokens = "", None, -1
        async for chunk in await _create(
            client, one, stream=True, stream_options={"include_usage": True}
        ):
            if chunk.choices:
                if not text:
                    tally.first.append(time.monotonic() - began)
                text += _piece(chunk.choices[0])
                finish = chunk.choices[0].finish_reason or finish
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
    else:
        whole = await _create(client, one)
        choice = whole.choices[0]
        text = choice.message.content if "messages" in one.body else choice.text
        finish, tokens = choice.finish_reason, whole.usage.completion_tokens
    right = (one.right.text, one.right.finish, one.right.tokens)
    if (text, finish, tokens) != right:
        tally.faults.append(f"{one.model}: came {(text, finish, tokens)}, right is {right}")
    tally.answers[one.model] += 1
    tally.tokens += tokens


async def _leave(client: openai.AsyncOpenAI, one: Asked, pieces: int) -> None:
    """Read a few pieces of a long answer and go."""
    stream = await _create(client, one, stream=True)
    async for _ in stream:
        pieces -= 1
        if not pieces:
            break
    await stream.close()


async def _create(client: openai.AsyncOpenAI, one: Asked, **more: Any) -> Any:
    make: Any = client.chat.completions if "messages" in one.body else client.completions
    return await make.create(model=one.model, temperature=0, **one.body, **more)


def _piece(choice: Any) -> str:
    text = choice.delta.content if hasattr(choice, "delta") else choice.text
    return text or ""


async def _watch(url: str, tally: Tally, resident: Callable[[], int]) -> None:
    """What a person who runs the server would have looking at it all the time."""
    began = time.monotonic()
    async with openai.DefaultAsyncHttpxClient(base_url=url, timeout=120) as client:
        while True:
            await asyncio.sleep(1)
            tally.resident.append((time.monotonic() - began, resident()))
            state = (await client.get("/admin/state")).raise_for_status().json()
            tally.held |= {slot["adapter"] for slot in state["slots"]}
            (await client.get("/metrics")).raise_for_status()
            (await client.post("/admin/adapters/rescan")).raise_for_status()
