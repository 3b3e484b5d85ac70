"""Minutes of mixed load: every answer equals the one computed alone, and memory stays flat.

`LAURA_SOAK_SECONDS=300 pytest tests/serve/test_soak.py -s` is the long run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from laura.data.sources import load_examples
from laura.models.registry import MICRO_BASE
from laura.recipe.sections import Source
from tests.serve.alone import ALL, Alone, Answer, Kind, write_adapters
from tests.serve.houses import until
from tests.serve.real_server import RealServer, serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SECONDS = float(os.environ.get("LAURA_SOAK_SECONDS", "60"))
CLIENTS, VANISHING, SLOTS = 64, 8, 5
# Twelve adapters for five places: they come and go all the time.
ATTENTION, MLP = ALL[:4], ALL[4:]
KINDS = {
    f"{name}-{rank}": Kind(rank, targets)
    for name, targets, ranks in (
        ("all", ALL, (1, 4, 16, 64)),
        ("attention", ATTENTION, (2, 8, 16, 32)),
        ("mlp", MLP, (3, 8, 16, 24)),
    )
    for rank in ranks
}
TEXTS_EACH = 5
# Below this margin (nats), fp32 may round one way in a batch and another way alone.
TIE = 1e-3
# What memory may grow by in the second half of the time. In the first, every request has come
# several times, and keys and values that are kept for later requests fill up.
MOST_GROWTH_BYTES = 16 * 2**20


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
        vanished: Streams that were left in the middle.
        faults: What went wrong, in words.
        first: Seconds until the first piece of each streamed answer.
        resident: Memory of the server (bytes), with the seconds since the beginning.
        held: Adapters that were seen in memory.
    """

    answers: Counter[str] = field(default_factory=Counter)
    vanished: int = 0
    faults: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)


def bodies(chance: random.Random) -> list[dict[str, Any]]:
    """Requests of mixed lengths: texts, and chats of one and several turns."""
    texts = [example.text for example in load_examples(Source(source="micro-source"))]
    found: list[dict[str, Any]] = []
    for number in range(TEXTS_EACH):
        limit = chance.choice([1, 3, 8, 20, 45, 70])
        # Cut off in the middle, so that there is something to go on with.
        text = "\n".join(chance.sample(texts, 8))[: chance.choice([12, 60, 200, 800])]
        if number % 2:
            found.append({"prompt": text, "max_tokens": limit})
            continue
        messages = [{"role": "user", "content": text[:300]}]
        for turn in range(chance.randrange(3)):
            messages.append({"role": "assistant", "content": chance.choice(texts)[:40]})
            messages.append({"role": "user", "content": f"{turn} {chance.choice(texts)[:30]}"})
        found.append({"messages": messages, "max_tokens": limit})
    return found


def answered(alone: Alone, name: str | None, body: dict[str, Any]) -> Answer:
    if "messages" in body:
        return alone.chat(name, body["messages"], body["max_tokens"])
    return alone.complete(name, body["prompt"], body["max_tokens"])


def all_asked(adapters: Path) -> list[Asked]:
    """Of every model: what all are asked, which must not be mixed up, and requests of its own."""
    alone, chance = Alone(MICRO_BASE, adapters, list(KINDS)), random.Random(0)
    shared = bodies(chance)
    found = [
        Asked(name or "micro", body, answered(alone, name, body))
        for name in (None, *KINDS)
        for body in [*shared, *bodies(chance)]
    ]
    kept = [one for one in found if one.right.margin > TIE]
    assert len(kept) > 0.9 * len(found), "too many answers are a matter of rounding"
    return kept


async def soak(server: RealServer, asked: Sequence[Asked]) -> Tally:
    """Ask from many clients at once until the time is over, then wait for every answer.

    Before that everything is asked at once, twice: passes are never larger, so memory has then
    been as high as it may get, whenever the clients' chances bring the largest pass.
    """
    tally = Tally()
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        for _ in range(2):
            both = [_ask(client, one, number % 2 == 0, tally) for number, one in enumerate(asked)]
            await asyncio.gather(*both)
        end = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(server, tally))
            crowd = [_client(client, asked, end, tally, number) for number in range(CLIENTS)]
            await asyncio.gather(*crowd)
            watch.cancel()
    return tally


async def _client(
    client: openai.AsyncOpenAI, asked: Sequence[Asked], end: float, tally: Tally, number: int
) -> None:
    """Ask what chance brings; the first ones leave every stream in its middle."""
    chance = random.Random(number)
    while time.monotonic() < end:
        one = chance.choice(asked)
        try:
            if number < VANISHING:
                stream = await _create(client, one, stream=True)
                pieces = chance.randrange(1, 6)
                async for _ in stream:
                    pieces -= 1
                    if not pieces:
                        break
                await stream.close()
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


async def _create(client: openai.AsyncOpenAI, one: Asked, **more: Any) -> Any:
    make: Any = client.chat.completions if "messages" in one.body else client.completions
    return await make.create(model=one.model, temperature=0, **one.body, **more)


def _piece(choice: Any) -> str:
    text = choice.delta.content if hasattr(choice, "delta") else choice.text
    return text or ""


async def _watch(server: RealServer, tally: Tally) -> None:
    """What a person who runs the server would have looking at it all the time."""
    began = time.monotonic()
    async with openai.DefaultAsyncHttpxClient(base_url=server.url, timeout=120) as client:
        while True:
            await asyncio.sleep(1)
            tally.resident.append((time.monotonic() - began, server.resident_bytes()))
            state = (await client.get("/admin/state")).raise_for_status().json()
            tally.held |= {slot["adapter"] for slot in state["slots"]}
            (await client.get("/metrics")).raise_for_status()
            (await client.post("/admin/adapters/rescan")).raise_for_status()


def test_under_load_every_answer_is_the_one_computed_alone(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    write_adapters(MICRO_BASE, folder, KINDS)
    asked = all_asked(folder)
    words = ("micro", "--adapters", str(folder), "--slots", str(SLOTS), "--precision", "fp32")
    with serving(*words, "--device", "cpu") as server:
        tally = asyncio.run(soak(server, asked))
        sizes = [size >> 20 for _, size in tally.resident]
        first = round(statistics.median(tally.first), 3)
        print(f"{tally.answers.total()} answers, first token {first} s, MiB {sizes}")
        check(tally, asked)
        with httpx.Client(base_url=server.url) as client:
            until(lambda: not client.get("/admin/state").json()["running"])
            state = client.get("/admin/state").json()
    assert state["waiting"] == {} and state["cache_tokens"] == 0
    assert all(slot["in_use"] == 0 for slot in state["slots"])
    assert server.child.returncode == 0
    statuses = [json.loads(line)["status"] for line in server.log if line.startswith("{")]
    assert max(statuses) < 500 and len(statuses) >= tally.answers.total() + tally.vanished


def check(tally: Tally, asked: list[Asked]) -> None:
    """Nothing is wrong or lost, everybody was served, and memory is flat."""
    assert tally.faults == []
    assert set(tally.answers) == {one.model for one in asked} == {"micro", *KINDS}
    assert tally.held == set(KINDS), "adapters have to come and go"
    assert tally.answers.total() > 3 * len(asked) and tally.vanished > CLIENTS
    settled = [size for second, size in tally.resident if second > SECONDS / 2]
    part = len(settled) // 4
    growth = statistics.median(settled[-part:]) - statistics.median(settled[:part])
    assert growth <= MOST_GROWTH_BYTES, [size >> 20 for _, size in tally.resident]
