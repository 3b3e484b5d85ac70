"""An engine without a model: it writes the prompt once more, with made-up probabilities.

What it says depends on the ask alone, so that tests can tell whose answer came back: the
answer is the adapter's name in brackets, if there is one, and the prompt's words again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from laura.engine.detokenizer import Score, TextDelta
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    EngineState,
    Event,
    PromptScores,
    SequenceRequest,
    ServingEngine,
    SlotState,
    Tell,
)

FINGERPRINT = "f00d" * 16


def logprob_of(token_id: int, place: int) -> float:
    """The made-up log-probability of a token in a place, in nats."""
    return -((token_id * 7 + place * 13) % 97 + 1) / 16


def score_of(token_id: int, place: int, top: int | None) -> Score:
    """A token's score; every third one is not the most likely in its place."""
    logprob = logprob_of(token_id, place)
    rivals = [((token_id + 1) % 256, logprob / 2)] if is_beaten(token_id) else []
    likely = [*rivals, (token_id, logprob), ((token_id + 2) % 256, logprob - 1)]
    return token_id, logprob, tuple(likely[: top or 0])


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
    asked: list[SequenceRequest] = field(default_factory=list)
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

    def submit(
        self, ask: SequenceRequest, adapter: AdapterFiles | None, tell: Tell
    ) -> Callable[[], None]:
        assert (adapter.name if adapter else None) == ask.adapter
        if len(self.running) >= self.most:
            raise EngineError("the queue is full; try again", "full", retry_after=3)
        self.asked.append(ask)
        self.running[ask.id] = ask.tenant
        counted: list[TextDelta] = []
        task = asyncio.create_task(self._answer(ask, tell, counted))

        def cancel() -> None:
            if self.running.pop(ask.id, None) is not None:
                self.cancelled.append(ask.id)
                task.cancel()
                if self.gate is None or self.gate.is_set():
                    tell(Ended("cancelled", len(ask.prompt), len(counted)))

        return cancel

    async def _answer(self, ask: SequenceRequest, tell: Tell, counted: list[TextDelta]) -> None:
        try:
            if self.gate is not None:
                await self.gate.wait()
            tell(Begun())
            async for event in self.events(ask):
                if isinstance(event, Ended):
                    self.running.pop(ask.id, None)
                if isinstance(event, TextDelta):
                    counted.append(event)
                tell(event)
        except Exception as error:
            # A mistake of ours shows where what was told is written down.
            del self.running[ask.id]
            tell(error if isinstance(error, EngineError) else TextDelta(error))  # type: ignore[arg-type]

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

    def answer_ids(self, ask: SequenceRequest) -> list[int]:
        """The tokens it will write."""
        words = self.tokenizer.decode(list(ask.prompt))
        text = f"[{ask.adapter}] {words}" if ask.adapter else words
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        shift = ask.seed % len(ids) if ask.temperature else 0
        return [*ids[shift:], *ids[:shift]]

    async def events(self, ask: SequenceRequest) -> AsyncIterator[Event]:
        if ask.prompt_logprobs:
            scores = [score_of(one, i, ask.top_logprobs) for i, one in enumerate(ask.prompt)]
            scores[0] = (ask.prompt[0], None, ())
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
            yield TextDelta(new[len(written) :], scores if ask.top_logprobs is not None else ())
            written = new
            if any(stop in text for stop in ask.stop):
                yield Ended("stop", len(ask.prompt), place + 1)
                return
        finish = "length" if most == ask.max_new_tokens else "stop"
        yield Ended(finish, len(ask.prompt), most, cached_tokens=1)


class Events(AsyncIterator[Event]):
    """The events of a sequence that is submitted at once; closing it cancels the sequence."""

    def __init__(
        self, engine: ServingEngine, request: SequenceRequest, files: AdapterFiles | None = None
    ) -> None:
        self.told: asyncio.Queue[Event | EngineError] = asyncio.Queue()
        self.over = False
        self.cancel = engine.submit(request, files, self._tell)

    def _tell(self, event: Begun | Event | EngineError) -> None:
        if not isinstance(event, Begun):
            self.told.put_nowait(event)

    async def __anext__(self) -> Event:
        if self.over:
            raise StopAsyncIteration
        event = await self.told.get()
        self.over = isinstance(event, Ended | EngineError)
        if isinstance(event, EngineError):
            raise event
        return event

    def close(self) -> None:
        self.over = True
        self.cancel()
