"""An engine without a model: it writes the prompt once more, with made-up probabilities.

What it says depends on the ask alone, so that tests can tell whose answer came back: the
answer is the adapter's name in brackets, if there is one, and the prompt's words again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from laura.serve.engines import (
    AdapterFiles,
    Ask,
    Ended,
    EngineError,
    EngineState,
    Event,
    NewText,
    PromptScores,
    SlotState,
    TokenScore,
)

FINGERPRINT = "f00d" * 16


def logprob_of(token_id: int, place: int) -> float:
    """The made-up log-probability of a token in a place, in nats."""
    return -((token_id * 7 + place * 13) % 97 + 1) / 16


def score_of(token_id: int, place: int, top: int | None) -> TokenScore:
    """A token's score; every third one is not the most likely in its place."""
    logprob = logprob_of(token_id, place)
    rivals = [((token_id + 1) % 256, logprob / 2)] if is_beaten(token_id) else []
    likely = [*rivals, (token_id, logprob), ((token_id + 2) % 256, logprob - 1)]
    return TokenScore(token_id, logprob, tuple(likely[: top or 0]))


def is_beaten(token_id: int) -> bool:
    return token_id % 3 == 0


@dataclass
class FakeEngine:
    """Deterministic, scripted, and counts what it holds.

    Attributes:
        pause: Seconds before each token.
        fail_after: Tokens after which it breaks down, with `error`.
        gate: While it is not set, nothing begins.
        most: Sequences it takes.
        end_after: Tokens after which an end token comes; `ends_at_once` is after none.
    """

    tokenizer: Any
    context_tokens: int = 512
    fingerprint: str = FINGERPRINT
    pause: float = 0.0
    fail_after: int | None = None
    error: Callable[[], Exception] = lambda: EngineError("the engine died; try again", "gone")
    most: int = 1000
    end_after: int | None = None
    ends_at_once: bool = False
    ready: bool = True
    gate: asyncio.Event | None = None
    asked: list[Ask] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: dict[str, str] = field(default_factory=dict)
    slots: dict[str, bool] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self.ready = True

    async def stop(self, grace_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        while self.running and loop.time() < end:
            await asyncio.sleep(0.01)
        self.stopping.set()

    def submit(self, ask: Ask, adapter: AdapterFiles | None) -> AsyncIterator[Event]:
        assert (adapter.name if adapter else None) == ask.adapter
        if len(self.running) >= self.most:
            raise EngineError("the queue is full; try again", "full", retry_after=3)
        self.asked.append(ask)
        self.running[ask.id] = ask.tenant
        return _Answer(self, ask)

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        if len(self.slots) >= 2 and adapter.name not in self.slots:
            raise EngineError("every place is pinned", "adapter")
        self.slots[adapter.name] = pin

    async def unload(self, name: str) -> bool:
        return self.slots.pop(name, None) is not None

    def state(self) -> EngineState:
        running: dict[str, int] = {}
        for tenant in self.running.values():
            running[tenant] = running.get(tenant, 0) + 1
        return EngineState(
            ready=self.ready,
            why_not="" if self.ready else "it is loading",
            slots=tuple(SlotState(name, pin, 0, 10) for name, pin in self.slots.items()),
            slots_total=2,
            running=running,
            waiting={},
            tokens_per_second=12.5,
            memory_bytes={"weights": 1000, "adapters": 20, "cache": 300},
            drafted_tokens=40,
            accepted_tokens=30,
        )

    def answer_ids(self, ask: Ask) -> list[int]:
        """The tokens it will write."""
        words = self.tokenizer.decode(list(ask.prompt))
        text = f"[{ask.adapter}] {words}" if ask.adapter else words
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        shift = ask.seed % len(ids) if ask.temperature else 0
        return [*ids[shift:], *ids[:shift]]

    async def events(self, ask: Ask) -> AsyncIterator[Event]:
        if self.gate is not None:
            await self.gate.wait()
        if ask.prompt_logprobs:
            scores = [score_of(one, i, ask.top_logprobs) for i, one in enumerate(ask.prompt)]
            scores[0] = TokenScore(ask.prompt[0], None)
            yield PromptScores(tuple(scores))
        ids = self.answer_ids(ask)
        if self.ends_at_once:
            yield Ended("stop", len(ask.prompt), 1)  # an end token, which is never told
            return
        most = min(ask.max_new_tokens, len(ids), self.end_after or len(ids))
        whole = self.tokenizer.decode(ids[:most])
        cuts = [whole.index(stop) for stop in ask.stop if stop in whole]
        told = whole[: min(cuts, default=len(whole))]
        written = ""
        for place in range(most):
            await asyncio.sleep(self.pause)
            if self.stopping.is_set():
                yield Ended("cancelled", len(ask.prompt), place)
                return
            if place == self.fail_after:
                raise self.error()
            text = self.tokenizer.decode(ids[: place + 1])
            new = written if text.endswith("�") else told[: len(text)]
            scores = (score_of(ids[place], place, ask.top_logprobs),)
            yield NewText(new[len(written) :], scores if ask.top_logprobs is not None else ())
            written = new
            if any(stop in text for stop in ask.stop):
                yield Ended("stop", len(ask.prompt), place + 1)
                return
        finish = "length" if most == ask.max_new_tokens else "stop"
        yield Ended(finish, len(ask.prompt), most, cached_tokens=1)


class _Answer:
    """The events of one ask; closing it frees its place even where it was never read."""

    def __init__(self, engine: FakeEngine, ask: Ask) -> None:
        self._engine, self._ask = engine, ask
        self._events = engine.events(ask)

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        if isinstance(event, Ended):
            self._engine.running.pop(self._ask.id, None)
        return event

    async def aclose(self) -> None:
        if self._engine.running.pop(self._ask.id, None) is not None:
            self._engine.cancelled.append(self._ask.id)
        await self._events.aclose()  # type: ignore[attr-defined]
