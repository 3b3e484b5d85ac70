"""The serving engine in vLLM, over a stand-in for vLLM that can misbehave."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.engine.detokenizer import TextDelta
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest, Grammar
from laura.models import adapters as peft_files
from laura.models.adapters import attach
from laura.models.load import load_base
from laura.models.lora import LoraSettings, detach, lora_layers
from laura.results.errors import AdapterError, ModelError, UsageError
from laura.serve import vllm
from laura.serve.engines import (
    AdapterFiles,
    Ended,
    EngineError,
    Event,
    PromptScores,
    SequenceRequest,
)
from laura.serve.settings import EngineSettings, read_arguments
from laura.serve.vllm import Patience, VllmServed, write_plain
from tests.models import fake_vllm
from tests.models.test_vllm_engine import Fake, alive, gone, require_vllm
from tests.serve.fake_engine import Events as Plain

pytestmark = pytest.mark.anyio

NUMBERS = itertools.count()


class Events(Plain):
    """Of a request that gets a name of its own."""

    def __init__(self, engine: Any, ask: SequenceRequest, files: AdapterFiles | None) -> None:
        super().__init__(engine, replace(ask, id=str(next(NUMBERS))), files)


QUICK = Patience(start=60.0, poll=0.05, silence=5.0, first_pause=0.1, last_pause=0.5)
PROMPT = (40, 41, 42, 50)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path / "fake", monkeypatch)


@pytest.fixture(scope="module")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterFiles]:
    """Four adapters of different rank."""
    place = tmp_path_factory.mktemp("adapters")
    return [make_adapter(tiny_folder, place / f"a{seed}", seed) for seed in range(1, 5)]


def make_adapter(
    base_folder: Path, folder: Path, seed: int, strength: float = 0.1, **changes: Any
) -> AdapterFiles:
    base = load_base(str(base_folder), device="cpu")
    settings = LoraSettings(rank=2 * seed, alpha=3.0, targets=("q_proj", "down_proj"), **changes)
    attach(base.model, settings, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(base.model).values():
            layer.B.normal_(std=strength)
    peft_files.save_adapter(base.model, folder, settings, str(base_folder))
    size = (folder / peft_files.WEIGHTS).stat().st_size
    return AdapterFiles(folder.name, folder, f"digest of {folder.name}", 2 * seed, size)


def read(files: AdapterFiles) -> Any:
    """In place of the library's check of the digest."""
    if files.digest != f"digest of {files.name}":
        raise AdapterError(f"{files.name} has changed since it was checked")
    return peft_files.read_adapter(files.folder)


def shift(files: AdapterFiles | None) -> int:
    """The stand-in's number of an adapter, from the original files."""
    if files is None:
        return 0
    settings, tensors = peft_files.read_adapter(files.folder)
    total = 0.0
    for name in sorted(settings.targets):
        weight = tensors[f"{peft_files.PREFIX}{name}.lora_B.weight"]
        total += float((weight * settings.for_module(name)[1]).sum())
    return fake_vllm.shift_of(total)


def expected(ask: SequenceRequest, files: AdapterFiles | None) -> list[int]:
    """New tokens, with the end token if one comes."""
    tokens, number = list(ask.prompt), shift(files)
    for _ in range(ask.max_new_tokens):
        token = fake_vllm.next_token(tokens, number)
        early = token == fake_vllm.END and len(tokens) < len(ask.prompt) + ask.min_new_tokens
        tokens.append(fake_vllm.FIRST if early else token)
        if tokens[-1] == fake_vllm.END and not ask.ignore_end:
            break
    return tokens[len(ask.prompt) :]


def ask_for(number: int, files: AdapterFiles | None = None, **changes: Any) -> SequenceRequest:
    prompt = (40 + number, *PROMPT)
    name = None if files is None else files.name
    ask = SequenceRequest("", "one", prompt, 12, adapter=name, ignore_end=True)
    return replace(ask, **changes)


async def collect(
    engine: VllmServed, ask: SequenceRequest, files: AdapterFiles | None = None
) -> list[Event]:
    return [event async for event in Events(engine, ask, files)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def check(
    engine: VllmServed, ask: SequenceRequest, files: AdapterFiles | None = None
) -> None:
    """The answer is that of who was asked."""
    events = await collect(engine, ask, files)
    tokens = expected(ask, files)
    ended = tokens[-1] == fake_vllm.END and not ask.ignore_end
    shown = tokens[:-1] if ended else tokens
    assert text_of(events) == engine.tokenizer.decode(shown, skip_special_tokens=True)
    finish = "stop" if ended else "length"
    assert events[-1] == Ended(finish, len(ask.prompt), len(tokens), 3)


SETTINGS = EngineSettings(base="tiny", kind="vllm")


def made(folder: Path, **changes: Any) -> VllmServed:
    """An engine with these settings of its own or of `EngineSettings`."""
    own = {"patience": QUICK, "read": read}
    for name in ("patience", "read", "most_running"):
        if name in changes:
            own[name] = changes.pop(name)
    return VllmServed(folder, replace(SETTINGS, **changes), **own)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> Any:
    engine = made(folder, **settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(0.0)


async def until(fact: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.02)


def run(work: Awaitable[None], seconds: float = 120.0) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(seconds):
            await work

    asyncio.run(all_of_it())


async def test_no_end_comes_before_the_least_tokens(tiny_folder: Path, fake: Fake) -> None:
    free = [ask_for(number, max_new_tokens=40, ignore_end=False) for number in range(6)]
    asked = [replace(one, min_new_tokens=30) for one in free]
    assert any(len(expected(one, None)) < 30 for one in free)
    assert all(len(expected(one, None)) >= 30 for one in asked)
    async with serving(tiny_folder) as engine:
        await asyncio.gather(*(check(engine, one) for one in (*free, *asked)))


async def test_a_grammar_is_handed_on(tiny_folder: Path, fake: Fake) -> None:
    ask = ask_for(0, ignore_end=False, grammar=Grammar("regex", "abc"))
    async with serving(tiny_folder) as engine:
        events = await collect(engine, ask)
        await check(engine, ask_for(1))
    assert isinstance(events[-1], Ended) and (events[-1].finish, events[-1].new_tokens) == (
        "stop", 4
    )  # fmt: skip


def batches(fake: Fake) -> list[list[str]]:
    return [entry["batch"] for entry in fake.log("batch")]


@pytest.mark.parametrize("gpu", [False, True], ids=["on a processor", "on a GPU"])
async def test_base_and_adapters_are_answered(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles], gpu: bool
) -> None:
    fake.faults(gpu=gpu)
    asked = [(ask_for(n, files), files) for n, files in enumerate([None, *adapters] * 3)]
    asked += [(replace(ask, max_new_tokens=40, ignore_end=False), f) for ask, f in asked]
    finishes = {expected(ask, files)[-1] == fake_vllm.END for ask, files in asked[15:]}
    assert finishes == {True, False}, "some of these end by themselves"
    async with serving(tiny_folder) as engine:
        assert engine.state().ready and engine.state().why_not == ""
        for _ in range(2):  # while adapters are read, the base's answers may come to their end
            await asyncio.gather(*(check(engine, ask, files) for ask, files in asked))
        slots = {slot.adapter: slot for slot in engine.state().slots}
        assert set(slots) == {"a1", "a2", "a3", "a4"} and engine.state().slots_total == 16
        assert slots["a2"].bytes == adapters[1].bytes and not slots["a2"].in_use
        assert not engine.state().running and not engine.state().waiting
        assert engine.state().tokens_per_second > 0
        await check(engine, ask_for(1, tenant="two"))
    mixed = [batch for batch in batches(fake) if "base" in batch and len(batch) > 1]
    assert bool(mixed) is gpu and max(map(len, batches(fake))) > 3
    assert {entry["salt"] for entry in fake.log("salt")} == {"tenant one", "tenant two"}
    start = fake.log("start")[0]["start"]
    assert start["dtype"] == ("bfloat16" if gpu else "float32")
    assert (start["enforce_eager"], start["max_loras"], start["max_cpu_loras"]) == (
        None if gpu else True,
        8,
        16,
    )
    assert not any(alive(pid) for pid in fake.pids())


async def test_base_and_adapters_take_turns(
    tiny_folder: Path,
    fake: Fake,
    adapters: list[AdapterFiles],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits comes soon, though those of the other kind never end."""
    monkeypatch.setattr(vllm, "TURN_SECONDS", 0.1)
    one = adapters[0]
    async with serving(tiny_folder, most_running=2) as engine:
        for many, few in ((None, one), (one, None)):
            begun = len(batches(fake))
            asks = [check(engine, ask_for(n, many, max_new_tokens=40), many) for n in range(40)]
            crowd = [asyncio.create_task(ask) for ask in asks]
            await asyncio.sleep(0)
            await check(engine, ask_for(50, few), few)
            assert not crowd[-1].done() and crowd[0].done()
            await asyncio.gather(*crowd)
            assert max(map(len, batches(fake)[begun:])) == 1


async def test_scores_and_stop_texts(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    async with serving(tiny_folder) as engine:
        files = adapters[2]
        number = shift(files)
        ask = ask_for(1, files, top_logprobs=2, prompt_logprobs=True)
        events = await collect(engine, ask, files)
        assert isinstance(events[0], PromptScores)
        first, *others = events[0].scores
        assert first == (ask.prompt[0], None, ())
        for i, score in enumerate(others, start=1):
            before = list(ask.prompt[:i])
            assert score[1] == pytest.approx(fake_vllm.nats(before, ask.prompt[i], number))
            assert len(score[2]) == 2 and score[2][0][1] >= score[2][1][1]
        told = [s for event in events if isinstance(event, TextDelta) for s in event.scores]
        new = expected(ask, files)
        assert [score[0] for score in told] == new
        for i, score in enumerate(told):
            before = [*ask.prompt, *new[:i]]
            assert score[1] == pytest.approx(fake_vllm.nats(before, new[i], number))

        only = await collect(engine, replace(ask, max_new_tokens=0), files)
        assert only == [events[0], Ended("length", len(ask.prompt), 0, 3)]
        one = await collect(engine, replace(ask, max_new_tokens=1), files)
        assert one[0] == events[0] and one[-1] == Ended("length", len(ask.prompt), 1, 3)

        whole = text_of(events)
        stop = whole[6:9]
        cut = await collect(engine, replace(ask, stop=("never", stop)), files)
        assert text_of(cut) == whole[: whole.index(stop)]
        last = cut[-1]
        assert isinstance(last, Ended) and last.finish == "stop" and last.new_tokens < 12


@pytest.mark.parametrize("stall", [0.0, 0.4], ids=["at once", "vLLM stalls"])
async def test_a_cancelled_sequence_is_out_before_another_kind_comes(
    stall: float, tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    one = adapters[0]
    async with serving(tiny_folder) as engine:
        await check(engine, ask_for(0, one), one)
        events = Events(engine, ask_for(1, one, max_new_tokens=400), one)
        await anext(events)
        other = asyncio.create_task(check(engine, ask_for(2)))
        await asyncio.sleep(0.05)
        assert engine.state().waiting == {"one": 1}
        worker = fake.log("start")[-1]["pid"]
        os.kill(worker, signal.SIGSTOP)
        events.close()
        await asyncio.sleep(stall)
        os.kill(worker, signal.SIGCONT)
        await other
    assert max(map(len, batches(fake))) == 1
    assert fake.log("abort")[0]["new"] < 400


async def test_the_least_used_adapter_leaves(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    one, two, three, four = adapters
    async with serving(tiny_folder, slots=2) as engine:
        await engine.load(one, pin=True)
        for number, files in enumerate([two, three, two, four, three] * 2):
            await check(engine, ask_for(number, files), files)
        names = [slot.adapter for slot in engine.state().slots]
        assert names == ["a1", "a3"] and engine.state().slots[0].pinned
        # More at once than there are slots: all are answered, and then leave.
        several = [two, three, four] * 6
        await asyncio.gather(*(check(engine, ask_for(n, f), f) for n, f in enumerate(several)))
        assert len(engine.state().slots) == 2
        await engine.load(two, pin=True)
        for asked in (lambda: Events(engine, ask_for(1, three), three), None):
            with pytest.raises(
                EngineError, match="every slot is taken by pinned adapters; unpin"
            ) as error:
                asked() if asked else await engine.load(three)
            assert error.value.kind == "adapter"
        await engine.load(two)
        assert [slot.pinned for slot in engine.state().slots].count(True) == 1
        assert await engine.unload("a1") and not await engine.unload("a9")
        await check(engine, ask_for(1, three), three)
        folder = Path(fake.log("load")[-1]["folder"])
        assert folder.is_dir() and len(list(folder.parent.iterdir())) == 2
        assert folder.parent.stat().st_mode & 0o077 == 0
    assert not folder.parent.exists()
    loads = fake.log("load")
    assert len(fake.log("unload")) == len(loads) - 2
    assert not [e for e in loads if Path(e["folder"]).is_relative_to(one.folder.parent)]
    with pytest.raises(EngineError, match="starts anew"):
        VllmServed(tiny_folder, SETTINGS).submit(ask_for(1), None, print)


async def test_an_adapter_in_use_leaves_with_its_last_sequence(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    one = adapters[0]
    async with serving(tiny_folder) as engine:
        running = asyncio.create_task(check(engine, ask_for(1, one, max_new_tokens=50), one))
        await until(lambda: bool(batches(fake)))
        assert await engine.unload("a1")
        assert [slot.in_use for slot in engine.state().slots] == [1]
        await running
        await until(lambda: len(fake.log("unload")) == 1)  # a message to another process
        assert not engine.state().slots
        # Whoever gives up while it is loaded leaves it there, ready for others.
        reader = Events(engine, ask_for(2, one), one)
        reader.close()
        await until(lambda: len(fake.log("load")) == 2)
        await check(engine, ask_for(3, one), one)
        assert len(fake.log("load")) == 2


async def test_another_version_of_an_adapter_is_another_adapter(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    async with serving(
        tiny_folder, read=lambda files: peft_files.read_adapter(files.folder)
    ) as engine:
        old = replace(adapters[0], name="same")
        new = replace(adapters[1], name="same")
        await asyncio.gather(
            *(check(engine, ask_for(n, f), f) for n, f in enumerate([old, new, old, new]))
        )
        assert await engine.unload("same") and not engine.state().slots


async def test_a_bad_adapter_harms_nobody(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles], tmp_path: Path
) -> None:
    async def fails(engine: VllmServed, files: AdapterFiles, words: str) -> None:
        for asked in (collect(engine, ask_for(1, files), files), engine.load(files)):
            with pytest.raises(EngineError, match=words) as error:
                await asked
            assert error.value.kind == "adapter"

    async with serving(tiny_folder, max_rank=8) as engine:
        await fails(engine, replace(adapters[0], digest="other"), "has changed since")
        big = make_adapter(tiny_folder, tmp_path / "big", 9)
        await fails(engine, big, "adapter big has rank 18; this server takes at most 8")
        dora = make_adapter(tiny_folder, tmp_path / "dora", 1, dora=True)
        await fails(engine, dora, r"trained lengths \(DoRA\)")
        fake.faults(refuse=True)
        await fails(engine, adapters[0], "vLLM cannot load adapter a1$")
        fake.faults()
        assert not engine.state().slots
        await asyncio.gather(
            check(engine, ask_for(1, adapters[0]), adapters[0]), check(engine, ask_for(2))
        )


async def test_killed_under_load_it_comes_back(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    async def ask(engine: VllmServed, number: int, kinds: list[str]) -> None:
        files = [None, *adapters[:2]][number % 3]
        try:
            await check(engine, ask_for(number, files, max_new_tokens=60), files)
        except EngineError as error:
            assert error.kind == "gone" and error.retry_after and error.retry_after >= 1
            assert "starts anew" in str(error)
            kinds.append(error.kind)

    def kill(victim: str) -> None:
        worker, core = fake.log("start")[-1]["pid"], fake.log("core")[-1]["core"]
        if victim == "all":
            os.killpg(worker, signal.SIGKILL)
        else:
            os.kill({"worker": worker, "core": core}[victim], signal.SIGKILL)

    async with serving(tiny_folder, most_running=8) as engine:
        await engine.load(adapters[0], pin=True)
        await engine.load(adapters[1])
        for victim in ("worker", "all", "core"):
            kinds: list[str] = []
            asks = [asyncio.create_task(ask(engine, n, kinds)) for n in range(24)]
            await until(lambda: len(engine.state().running) > 0)
            await asyncio.sleep(0.1)
            kill(victim)
            await asyncio.gather(*asks)
            assert len(kinds) >= 8, "all that ran then"
            assert not engine.state().ready and engine.state().why_not
            with pytest.raises(EngineError, match="starts anew"):
                Events(engine, ask_for(1), None)
            # Everybody may read that; what vLLM says of itself is for the log.
            await until(lambda: engine.state().why_not == "vLLM ended by signal SIGKILL")
            await until(lambda: engine.state().ready)
            assert engine.state().why_not == ""
            slots = {slot.adapter: slot.pinned for slot in engine.state().slots}
            assert slots == {"a1": True, "a2": False}
            checks = [ask(engine, n, kinds := []) for n in range(12)]
            await asyncio.gather(*checks)
            assert not kinds
    assert gone(fake.pids())


async def test_killed_while_adapters_come_back(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    slow: list[str] = []

    def read_slowly(files: AdapterFiles) -> Any:
        while slow:
            time.sleep(0.01)
        return read(files)

    async with serving(tiny_folder, read=read_slowly) as engine:
        await engine.load(adapters[0], pin=True)
        slow.append("yes")
        for start in (2, 3):
            os.kill(fake.log("start")[-1]["pid"], signal.SIGKILL)
            await until(lambda start=start: len(fake.log("core")) == start)  # type: ignore[misc]
            await until(lambda: engine.state().ready)
        new = asyncio.create_task(collect(engine, ask_for(1, adapters[1]), adapters[1]))
        await asyncio.sleep(0)
        os.kill(fake.log("start")[-1]["pid"], signal.SIGKILL)
        with pytest.raises(EngineError, match="starts anew"):
            await new
        slow.clear()
        await until(lambda: engine.state().ready)
        assert [(s.adapter, s.pinned) for s in engine.state().slots if s.pinned] == [("a1", True)]
        await check(engine, ask_for(1, adapters[0]), adapters[0])


async def test_arguments_of_vllms_own(tiny_folder: Path, fake: Fake) -> None:
    async def asks(given: list[str], context: int, **faults: int) -> dict[str, Any]:
        """What vLLM was started with; the door takes what it reads, and no more."""
        fake.faults(**faults)
        async with serving(tiny_folder, slots=0, arguments=read_arguments(given)) as engine:
            assert engine.context_tokens == context
            await check(engine, ask_for(1, max_new_tokens=context - 5))
            with pytest.raises(EngineError, match=f"the context has {context} tokens"):
                Events(engine, ask_for(1, max_new_tokens=context - 4), None)
        start: dict[str, Any] = fake.log("start")[-1]["start"]
        return start

    start = await asks(["max-model-len=99", "tensor_parallel_size=2", "no-enforce-eager"], 99)
    # vLLM insists on a token behind a scored prompt.
    assert (start["max_model_len"], start["tensor_parallel_size"]) == (100, 2)
    assert start["enforce_eager"] is False and not start["enable_lora"]
    start = await asks(["max-model-len=auto", "dtype=half", "max-num-seqs=3"], 29, reads=30)
    assert (start["max_model_len"], start["dtype"], start["max_num_seqs"]) == (-1, "float16", 3)
    # It has memory for more than the model reads.
    await asks(["max-model-len=-1"], 512, reads=9999)
    with pytest.raises(ModelError, match=r"exit code 2(.|\n)* unrecognized arguments: --colour"):
        async with serving(tiny_folder, arguments=read_arguments(["colour=red"])):
            pass
    with pytest.raises(UsageError, match="max-model-len=513: the model reads 512 tokens"):
        made(tiny_folder, arguments=read_arguments(["max-model-len=513"]))


@pytest.mark.parametrize("fault", ["mute", "die_after", "raise_after"])
async def test_vllm_that_hangs_or_fails_is_started_anew(
    tiny_folder: Path, fake: Fake, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laura.engine.vllm_worker.GRACE_SECONDS", -1.5)
    patience = replace(QUICK, silence=1.0)
    async with serving(tiny_folder, slots=0, patience=patience) as engine:
        await check(engine, ask_for(0))
        fake.faults(**{fault: True if fault == "mute" else 15})
        with pytest.raises(EngineError) as error:
            await collect(engine, ask_for(1))
        assert error.value.kind == "gone"
        fake.faults()
        await until(lambda: len(fake.log("start")) == 2 and engine.state().ready)
        await check(engine, ask_for(2))


async def test_what_vllm_refuses_or_gives_up(
    tiny_folder: Path, fake: Fake, adapters: list[AdapterFiles]
) -> None:
    async with serving(tiny_folder, slots=0) as engine:
        for faults, kind in (({"unwanted": True}, "request"), ({"reason": "abort"}, "gone")):
            fake.faults(**faults)
            with pytest.raises(EngineError) as error:
                await collect(engine, ask_for(1))
            assert error.value.kind == kind and "as told" not in str(error.value)
        fake.faults()
        await check(engine, ask_for(1))
        assert len(fake.log("start")) == 1
        with pytest.raises(EngineError, match="without LoRA slots"):
            Events(engine, ask_for(1, adapters[0]), adapters[0])


async def test_it_stops_in_order(tiny_folder: Path, fake: Fake) -> None:
    engine = made(tiny_folder, slots=0)
    assert not engine.state().ready
    await engine.start()
    short = asyncio.create_task(check(engine, ask_for(1, max_new_tokens=50)))
    long = asyncio.create_task(collect(engine, ask_for(2, max_new_tokens=500)))
    await until(lambda: len(engine.state().running) == 1)
    # As a service manager does; what runs is still finished.
    os.kill(fake.log("start")[0]["pid"], signal.SIGTERM)
    stopping = asyncio.create_task(engine.stop(1.0))
    await asyncio.sleep(0)
    with pytest.raises(EngineError, match="is stopping"):
        Events(engine, ask_for(3), None)
    await short
    last = (await long)[-1]
    assert isinstance(last, Ended) and last.finish == "cancelled" and last.new_tokens > 9
    await stopping
    assert not any(alive(pid) for pid in fake.pids())


def test_vllm_that_does_not_start(
    tiny_folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(kind: type[Exception], words: str, **changes: float) -> None:
        engine = made(tiny_folder, patience=replace(QUICK, **changes))
        with pytest.raises(kind, match=words):
            await engine.start()
        assert not engine.state().ready

    fake.faults(exit=True)
    run(fails(ModelError, r"exit code 3 \(ValueError: no memory left for it\); its last words:"))
    monkeypatch.setattr("laura.engine.vllm_worker.GRACE_SECONDS", -1.5)
    fake.faults(slow=30)
    run(fails(ModelError, "vLLM was not ready after 1 seconds", start=1.0))
    assert gone(fake.pids())


async def test_a_slow_start_is_waited_for_and_failing_ones_repeated(
    tiny_folder: Path, fake: Fake
) -> None:
    fake.faults(slow=1)
    async with serving(tiny_folder, slots=0) as engine:
        fake.faults(exit=True)
        os.kill(fake.log("start")[-1]["pid"], signal.SIGKILL)
        await until(lambda: len(fake.log("start")) >= 3)
        assert not engine.state().ready
        await until(lambda: "does not start again" in engine.state().why_not)
        fake.faults()
        await until(lambda: engine.state().ready)
        await check(engine, ask_for(1))


def test_the_private_copy_computes_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    """One rank and scale 1 against ranks, alphas and rsLoRA by pattern."""
    patterns = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.mlp.down_proj": 7.0}}
    files = make_adapter(tiny_folder, tmp_path / "rich", 2, rslora=True, **patterns)
    settings, tensors = peft_files.read_adapter(files.folder)
    write_plain(settings, tensors, tmp_path / "plain")
    logits = []
    for folder in (files.folder, tmp_path / "plain"):
        base = load_base(str(tiny_folder), device="cpu")
        peft_files.load_adapter(base.model, folder)
        with torch.inference_mode():
            logits.append(base.model(torch.tensor([PROMPT])).logits)
    with torch.inference_mode():
        plain = load_base(str(tiny_folder), device="cpu").model(torch.tensor([PROMPT])).logits
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)
    assert (logits[0] - plain).abs().max() > 0.01
    shapes = {tuple(t.shape) for t in load_file(tmp_path / "plain" / peft_files.WEIGHTS).values()}
    assert {min(shape) for shape in shapes} == {4}, "one rank for all"


@pytest.mark.slow
async def test_vllm_itself(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server with the real small model: exact beside others, also after a kill."""
    require_vllm()
    adapters = [make_adapter(smollm2_folder, tmp_path / f"r{seed}", seed, 0.4) for seed in (1, 2)]
    kinds: list[AdapterFiles | None] = [None, *adapters]
    base = load_base(str(smollm2_folder), device="cpu")
    texts = ["The capital of France is", "Once upon a time", "def add(a, b):\n"]

    def alone(files: AdapterFiles | None) -> list[GenerateAnswer]:
        """In process, greedy."""
        if files is not None:
            peft_files.load_adapter(base.model, files.folder)
        engine = Engine(base.model, base.tokenizer)
        answers = engine.generate([GenerateRequest(t, (), 12, logprobs=True) for t in texts])
        if files is not None:
            detach(base.model)
        return answers

    expected = [alone(files) for files in kinds]
    assert len({answer.text for answers in expected for answer in answers}) > 5

    async def same(engine: VllmServed, kind: int, place: int) -> None:
        files = kinds[kind]
        prompt = tuple(engine.tokenizer.encode(texts[place]))
        ask = SequenceRequest(f"{kind} {place}", "one", prompt, 12, top_logprobs=0)
        ask = replace(ask, adapter=None if files is None else files.name)
        events = await collect(engine, ask, files)
        wanted = expected[kind][place]
        assert text_of(events) == wanted.text
        told = [s[1] for e in events if isinstance(e, TextDelta) for s in e.scores]
        assert told == pytest.approx(wanted.logprobs[: len(told)], abs=1e-2)

    patience = replace(Patience(), first_pause=0.5)
    async with serving(smollm2_folder, slots=2, max_rank=8, patience=patience) as engine:
        together = [same(engine, n % 3, n // 3 % 3) for n in range(18)]
        await asyncio.gather(*together)
        assert engine._process is not None
        events = Events(
            engine, SequenceRequest("long", "one", (1, 2, 3), 500, ignore_end=True), None
        )
        await anext(events)
        os.killpg(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="starts anew"):
            async for _ in events:
                pass
        await until(lambda: engine.state().ready, 300.0)
        await asyncio.gather(*(same(engine, kind, 0) for kind in range(3)))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
