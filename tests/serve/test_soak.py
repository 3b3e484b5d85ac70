"""Minutes of mixed load: every answer equals the one computed alone, and memory stays flat.

`LAURA_SOAK_SECONDS=300 pytest tests/serve/test_soak.py -s` is the long run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
from pathlib import Path
from typing import Any

import httpx
import pytest

from laura.data.sources import load_examples
from laura.models.registry import MICRO_BASE
from laura.recipe.sections import Source
from tests.serve.alone import ALL, Alone, Answer, Kind, write_adapters
from tests.serve.houses import until
from tests.serve.real_server import serving
from tests.serve.soaking import Asked, Tally, soak

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


def test_under_load_every_answer_is_the_one_computed_alone(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    write_adapters(MICRO_BASE, folder, KINDS)
    asked = all_asked(folder)
    words = ("micro", "--adapters", str(folder), "--slots", str(SLOTS), "--precision", "fp32")
    with serving(*words, "--device", "cpu") as server:
        tally = asyncio.run(
            soak(
                server.url,
                asked,
                SECONDS,
                clients=CLIENTS,
                vanishing=VANISHING,
                resident=server.resident_bytes,
            )
        )
        print(json.dumps(tally.told()))
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
