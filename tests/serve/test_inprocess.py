"""The engine in this process, as the door uses it: events, cancelling, adapters, faults."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from laura.engine.detokenizer import TextDelta
from laura.engine.model_runner import FusedRunner
from laura.engine.scheduler import Scheduler
from laura.models.adapter_files import base_facts
from laura.serve.async_engine import InProcess, open_inprocess
from laura.serve.engines import (
    AdapterFiles,
    Ended,
    EngineError,
    Event,
    PromptScores,
    SequenceRequest,
)
from laura.serve.library import Library
from laura.serve.settings import EngineSettings
from tests.conftest import make_tiny_model
from tests.engine.alone import MLP, alone, made_adapter, merged, tiny, written
from tests.serve.fake_engine import Events

pytestmark = pytest.mark.anyio

ADAPTERS = {f"a{seed}": made_adapter(seed, 4 if seed % 2 else 6, MLP) for seed in range(6)}
TEXT = "question: how many cats? answer"


def files_of(name: str, rank: int = 4) -> AdapterFiles:
    return AdapterFiles(name, Path("nowhere") / name, f"digest of {name}", rank, 1000)


class Reader:
    """Reads adapters from memory; can be held up and told to fail."""

    def __init__(self) -> None:
        self.go, self.read = threading.Event(), list[str]()
        self.go.set()

    def __call__(self, files: AdapterFiles) -> Any:
        self.go.wait()
        self.read.append(files.name)
        if files.name not in ADAPTERS:
            raise OSError(f"{files.folder} is gone")
        return ADAPTERS[files.name]


class Setting:
    """An engine of the tiny model."""

    def __init__(self, tokenizer: Any, **changes: Any) -> None:
        self.reader, self.live = Reader(), None
        model, slots = tiny(), changes.pop("slots", 3)
        cache_bytes = changes.pop("cache_bytes", 2**25)

        def make() -> Scheduler:
            self.live = Scheduler(
                FusedRunner(model, slots=slots), tokenizer, cache_bytes=cache_bytes
            )
            return self.live

        self.engine = InProcess(
            make, tokenizer, model.config, "hash", self.reader, max_rank=64, **changes
        )
        self.prompt = tuple(tokenizer.encode(TEXT))
        self.count = 0

    def ask(self, limit: int = 8, **more: Any) -> SequenceRequest:
        self.count += 1
        settings = {"tenant": "t", "prompt": self.prompt, "ignore_end": True, **more}
        return SequenceRequest(id=str(self.count), max_new_tokens=limit, **settings)

    def submit(self, limit: int = 8, **more: Any) -> Events:
        name = more.get("adapter")
        return Events(self.engine, self.ask(limit, **more), files_of(name) if name else None)


@asynccontextmanager
async def running(tokenizer: Any, **changes: Any) -> AsyncIterator[Setting]:
    setting = Setting(tokenizer, **changes)
    await setting.engine.start()
    try:
        yield setting
    finally:
        await setting.engine.stop(0)


async def text_of(events: AsyncIterator[Event]) -> str:
    return "".join([event.text async for event in events if isinstance(event, TextDelta)])


def expected(tokenizer: Any, name: str | None, prompt: tuple[int, ...], limit: int) -> str:
    model = merged(ADAPTERS[name] if name else None)
    text: str = tokenizer.decode(alone(model, prompt, limit), skip_special_tokens=True)
    return text


async def test_many_asks_through_few_slots(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer, slots=2) as setting:
        source = random.Random(0)
        names = [source.choice([None, *ADAPTERS]) for _ in range(30)]
        texts = await asyncio.gather(*(text_of(setting.submit(adapter=n)) for n in names))
        right = {n: expected(tiny_tokenizer, n, setting.prompt, 8) for n in set(names)}
        assert list(texts) == [right[name] for name in names]
        assert len(set(right.values())) > 3
        state = setting.engine.state()
        assert state.ready and len(state.slots) == 2 == state.slots_total
        assert state.running == {} == state.waiting and state.cache_tokens == 0
        assert all(slot.in_use == 0 for slot in state.slots)
        assert state.tokens_per_second > 0 and state.memory_bytes["weights"] > 0


async def test_the_last_answer_to_end_lets_in_who_waits_for_its_slot(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer, slots=1) as setting:
        first = setting.submit(60, adapter="a0")
        await anext(first)
        second = asyncio.ensure_future(text_of(setting.submit(adapter="a1")))
        while not setting.engine._loader._reads:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        async for _ in first:
            pass
        assert await second == expected(tiny_tokenizer, "a1", setting.prompt, 8)


async def test_events_come_in_order(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer) as setting:
        events = [e async for e in setting.submit(5, top_logprobs=2, prompt_logprobs=True)]
        assert isinstance(events[0], PromptScores)
        assert [score[0] for score in events[0].scores] == list(setting.prompt)
        assert events[0].scores[0][1] is None
        texts = [event for event in events if isinstance(event, TextDelta)]
        assert sum(len(event.scores) for event in texts) == 5
        assert all(len(score[2]) == 2 for event in texts for score in event.scores)
        assert events[-1] == Ended("length", len(setting.prompt), 5, 0)
        again = [e async for e in setting.submit(5)]
        assert again[-1] == Ended("length", len(setting.prompt), 5, len(setting.prompt) - 1)
        other = [e async for e in setting.submit(5, tenant="other")]
        assert other[-1] == Ended("length", len(setting.prompt), 5, 0)


async def test_a_closed_iterator_frees_its_row(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer) as setting:
        events = setting.submit(400, adapter="a1")
        await anext(events)
        assert setting.engine.state().running == {"t": 1}
        events.close()
        other = setting.submit(400)
        await asyncio.sleep(0.2)
        other.close()
        for _ in range(200):
            state = setting.engine.state()
            if not state.running and not state.cache_tokens:
                break
            await asyncio.sleep(0.02)
        assert state.running == {} and state.cache_tokens == 0
        assert all(slot.in_use == 0 for slot in state.slots)
        assert await text_of(setting.submit(4)) == expected(tiny_tokenizer, None, setting.prompt, 4)


async def test_reading_an_adapter_lets_others_pass(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer) as setting:
        setting.reader.go.clear()
        slow = asyncio.ensure_future(text_of(setting.submit(adapter="a1")))
        assert await text_of(setting.submit()) != ""
        assert not slow.done() and setting.engine.state().waiting == {"t": 1}
        setting.reader.go.set()
        assert await slow == expected(tiny_tokenizer, "a1", setting.prompt, 8)


async def test_a_bad_adapter_fails_alone(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer) as setting:
        good = asyncio.ensure_future(text_of(setting.submit(60)))
        with pytest.raises(EngineError, match="cannot be read") as caught:
            await text_of(setting.submit(adapter="missing"))
        assert caught.value.kind == "adapter" and "nowhere" not in str(caught.value)
        ADAPTERS["wrong"] = made_adapter(1, 4, MLP, layers=(0,))
        name = next(iter(ADAPTERS["wrong"][1]))
        ADAPTERS["wrong"][1][name][0, 0] = float("nan")
        with pytest.raises(EngineError, match="not finite"):
            await text_of(setting.submit(adapter="wrong"))
        with pytest.raises(EngineError, match="not finite"):
            await setting.engine.load(files_of("wrong"))
        del ADAPTERS["wrong"]
        with pytest.raises(EngineError, match="rank 65"):
            Events(setting.engine, setting.ask(adapter="big"), files_of("big", 65))
        assert await good == expected(tiny_tokenizer, None, setting.prompt, 60)
        assert setting.engine.state().slots == ()


async def test_load_pin_and_unload(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer, slots=2) as setting:
        for name in ("a0", "a1"):
            await setting.engine.load(files_of(name, 6), pin=True)
        with pytest.raises(EngineError, match="all 2 are in use or pinned"):
            await text_of(setting.submit(adapter="a2"))
        assert await text_of(setting.submit(adapter="a1"))
        assert await setting.engine.unload("a1")
        assert not await setting.engine.unload("a1")
        assert await text_of(setting.submit(adapter="a2"))
        assert [s.adapter for s in setting.engine.state().slots] == ["a0", "a2"]
        await setting.engine.load(files_of("a0", 6))
        assert [s.pinned for s in setting.engine.state().slots] == [False, False]


async def test_impossible_asks_are_refused_at_once(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer, cache_bytes=2**20) as setting:
        for changes, message in (
            ({"prompt": ()}, "empty"),
            ({"prompt": (1, 512)}, "0 to 511"),
            ({"prompt": (-1,)}, "0 to 511"),
            ({"limit": 0}, "allowed are 1 to"),
            ({"limit": 506}, "context has 512"),
            ({"limit": -1, "prompt_logprobs": True}, "allowed are 0 to"),
            ({"temperature": -1.0}, "temperature is -1"),
            ({"top_p": 0.0}, "top_p"),
            ({"top_logprobs": 513}, "top_logprobs"),
            ({"priority": 0.0}, "priority"),
        ):
            with pytest.raises(EngineError, match=message) as caught:
                setting.submit(**{"limit": 4, **changes})
            assert caught.value.kind == "request"


async def test_the_queue_is_bounded(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer, most_waiting=4) as setting:
        setting.reader.go.clear()
        held = [setting.submit(adapter="a1") for _ in range(2)]
        with pytest.raises(EngineError, match="too many of your requests wait") as caught:
            setting.submit(adapter="a1")
        assert caught.value.kind == "full" and caught.value.retry_after
        held += [setting.submit(adapter="a1", tenant="u") for _ in range(2)]
        with pytest.raises(EngineError, match="too many requests"):
            setting.submit(tenant="v", adapter="a1")
        setting.reader.go.set()
        assert len({await text_of(events) for events in held}) == 1


async def test_stopping_finishes_what_runs(tiny_tokenizer: Any) -> None:
    setting = Setting(tiny_tokenizer)
    with pytest.raises(EngineError, match="stopped"):
        setting.submit()
    await setting.engine.start()
    short = asyncio.ensure_future(text_of(setting.submit(30)))
    await asyncio.sleep(0.1)
    await setting.engine.stop(30)
    assert await short == expected(tiny_tokenizer, None, setting.prompt, 30)
    with pytest.raises(EngineError) as caught:
        setting.submit()
    assert caught.value.kind == "gone" and not setting.engine.state().ready
    with pytest.raises(EngineError):
        await setting.engine.unload("a")


async def test_stopping_cancels_what_takes_too_long(tiny_tokenizer: Any) -> None:
    setting = Setting(tiny_tokenizer)
    await setting.engine.start()
    setting.reader.go.clear()
    waits, events = setting.submit(adapter="a1"), setting.submit(400)
    await anext(events)
    await setting.engine.stop(0)
    setting.reader.go.set()
    last = [event async for event in events][-1]
    assert isinstance(last, Ended) and last.finish == "cancelled"
    with pytest.raises(EngineError) as caught:
        await text_of(waits)
    assert caught.value.kind == "gone"


async def test_who_gives_up_hears_how_far_it_came(tiny_tokenizer: Any) -> None:
    async with running(tiny_tokenizer) as setting:
        events = setting.submit(400)
        told = [await anext(events) for _ in range(3)]
        events.cancel()
        while not isinstance(told[-1], Ended):
            told.append(await asyncio.wait_for(events.told.get(), 20))
        last = told[-1]
        assert last.finish == "cancelled" and last.prompt_tokens == len(setting.prompt)
        assert len(told) - 1 <= last.new_tokens < 400
        setting.reader.go.clear()
        waits = setting.submit(adapter="a1")
        waits.cancel()
        await asyncio.sleep(0.05)
        assert waits.told.empty(), "nothing was computed for it"


async def test_a_dead_engine_says_so(tiny_tokenizer: Any, caplog: Any) -> None:
    async with running(tiny_tokenizer) as setting:
        events = setting.submit(400)
        await anext(events)
        assert setting.live is not None
        setting.live.runner.logits = lambda _: 1 / 0  # type: ignore[assignment,method-assign]
        with pytest.raises(EngineError) as caught:
            await text_of(events)
        assert caught.value.kind == "gone"
        with pytest.raises(EngineError):
            setting.submit()
        state = setting.engine.state()
        assert not state.ready and "died" in state.why_not
    assert "ZeroDivisionError" in caplog.text


async def test_no_tenant_starves(tiny_tokenizer: Any) -> None:
    """A flood waits in front of a single ask of another tenant, which is served soon."""
    row = 2 * 2 * 2 * 16 * 4 * 128
    async with running(tiny_tokenizer, cache_bytes=3 * row) as setting:
        flood = [asyncio.ensure_future(text_of(setting.submit(40))) for _ in range(40)]
        await asyncio.sleep(0)
        await text_of(setting.submit(tenant="small"))
        assert sum(one.done() for one in flood) < 12
        for one in flood:
            one.cancel()


async def test_an_engine_of_a_folder_reads_adapters_from_folders(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    written(tmp_path / "mine", ADAPTERS["a1"])
    files = Library(tmp_path, base_facts(tiny_folder)).open("mine")
    prompt = tuple(tiny_tokenizer.encode(TEXT))
    model = merged(ADAPTERS["a1"], make_tiny_model)
    settings = EngineSettings(base="tiny", device="cpu", precision="fp32", slots=1)
    engine = open_inprocess(tiny_folder, settings)
    await engine.start()
    ask = SequenceRequest("1", "t", prompt, 9, adapter="mine", ignore_end=True)
    found = await text_of(Events(engine, ask, files))
    await engine.stop(1)
    assert found == tiny_tokenizer.decode(alone(model, prompt, 9), skip_special_tokens=True)
    assert engine.context_tokens == 512 and len(engine.fingerprint) == 64
