"""Several engines behind one gate: where a sequence goes, and what becomes of it when they die."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from laura.engine.detokenizer import TextDelta
from laura.models.adapter_files import base_facts
from laura.results.errors import ModelError, UsageError
from laura.serve import pool as pool_file
from laura.serve import wire as wire_file
from laura.serve.app import create_app
from laura.serve.async_engine import open_inprocess
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    EngineState,
    Event,
    PromptScores,
    SequenceRequest,
    SlotState,
)
from laura.serve.headless import Headless
from laura.serve.library import Library
from laura.serve.pool import EnginePool
from laura.serve.settings import EngineSettings, ServeSettings
from laura.serve.wire import (
    OF_ENGINE,
    OF_GATE,
    AdapterMark,
    Ask,
    Failure,
    Report,
    SequenceEvent,
    read_engine_key,
)
from tests.conftest import make_tiny_model
from tests.engine.alone import MLP, alone, made_adapter, merged, written
from tests.serve.fake_engine import Events, FakeEngine
from tests.serve.houses import FakeLibrary
from tests.serve.pools import KEY, FakeHost, Pooled, pool_of, pooled, soon

pytestmark = pytest.mark.anyio
WORDS = "Once Beno carried Uma because the lamp was green"


@pytest.fixture(autouse=True)
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> Any:
    """Whatever the other side says, nothing of ours breaks."""
    yield
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], caplog.text


def request(tokenizer: Any, number: int, **more: Any) -> SequenceRequest:
    settings = {"tenant": "t", "prompt": tuple(tokenizer.encode(WORDS)), "max_new_tokens": 12}
    return SequenceRequest(id=f"s{number}", **{**settings, **more})


def files(name: str | None) -> AdapterFiles | None:
    return None if name is None else AdapterFiles(name, Path("/nowhere") / name, "d" * 64, 8, 10)


def ask(engine: Any, request: SequenceRequest) -> Events:
    return Events(engine, request, files(request.adapter))


async def all_of(events: Events) -> list[Event]:
    return [one async for one in events]


def test_messages_come_as_they_were_said() -> None:
    chance = random.Random(0)
    floats = [chance.uniform(-30, 0) * 10 ** chance.randrange(-9, 2) for _ in range(2000)]
    scores = tuple((n, one, ((n + 1, one / 3), (n, -math.inf))) for n, one in enumerate(floats))
    first = (7, None, ())
    for event in (
        Begun(),
        PromptScores((first, *scores)),
        TextDelta("a\n\u2028 Ж😀\x00", scores),
        Ended("length", 3, 9, 1),
        EngineError("full", "full", 2.5),
    ):
        said = SequenceEvent.of("id", event).model_dump_json(exclude_none=True)
        assert "\n" not in said
        found = OF_ENGINE.validate_json(said)
        assert isinstance(found, SequenceEvent)
        came = found.event()
        if isinstance(came, Failure):
            came = came.error()
            assert vars(came) == vars(event) and str(came) == str(event)
        else:
            assert came == event
    wanted = SequenceRequest(
        "i", "t", tuple(range(500)), 5, 2.5, "a", 0.7, 0.9, 5, 2**63 - 1, ("x", "\n"), 3, True,
        True, 2,
    )  # fmt: skip
    assert OF_GATE.validate_json(Ask(request=wanted).model_dump_json(exclude_none=True)) == Ask(
        request=wanted
    )
    state = EngineState(True, "", (SlotState("a", True, 1, 9),), 2, {"t": 1}, {}, 1.5, {"w": 3})
    told = OF_ENGINE.validate_json(Report(state=state).model_dump_json(exclude_none=True))
    assert isinstance(told, Report) and told.state == state


async def test_what_a_client_hears_is_what_the_engine_says(micro_tokenizer: Any) -> None:
    kinds: list[dict[str, Any]] = [
        {}, {"adapter": "maths"}, {"top_logprobs": 3}, {"stop": (" lamp",)},
        {"prompt_logprobs": True, "top_logprobs": 2}, {"temperature": 1.0, "seed": 5},
        {"prompt_logprobs": True, "max_new_tokens": 0},
    ]  # fmt: skip
    alone = FakeEngine(micro_tokenizer)
    async with pooled(micro_tokenizer) as found:
        for number, more in enumerate(kinds):
            wanted = request(micro_tokenizer, number, **more)
            there, here = await asyncio.gather(
                all_of(ask(found.pool, wanted)), all_of(ask(alone, wanted))
            )
            assert there == here and isinstance(there[-1], Ended)
            assert found.host_of(wanted.id).engine.asked[-1] == wanted
        assert all(not one.sequences and not one.tokens for one in found.pool._backends)


async def test_a_tenant_with_an_adapter_keeps_its_engine(micro_tokenizer: Any) -> None:
    pairs = [(f"t{n % 10}", ("maths", "poems", None)[n % 3]) for n in range(90)]

    async def places(found: Pooled, numbers: range) -> list[FakeHost]:
        wanted = [
            request(micro_tokenizer, n, tenant=pairs[n % 90][0], adapter=pairs[n % 90][1])
            for n in numbers
        ]
        for one in wanted:
            await all_of(ask(found.pool, one))
        return [found.host_of(one.id) for one in wanted]

    async with pooled(micro_tokenizer, 3) as found:
        first, again = await places(found, range(90)), await places(found, range(90, 180))
        assert first == again
        assert min(Counter(map(id, first)).values()) > 5 and len(set(map(id, first))) == 3
        lost = found.hosts[0]
        lost.kill()
        await soon(lambda: len(found.pool._ready()) == 2)
        after = await places(found, range(180, 270))
    for before, now in zip(first, after, strict=True):
        assert now is not lost and (before is lost or now is before)


async def test_an_engine_that_is_clearly_busier_is_left_alone(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_file, "BUSIER_TOKENS", 100)
    async with pooled(micro_tokenizer, pause=0.01) as found:
        every = [ask(found.pool, request(micro_tokenizer, n)) for n in range(40)]
        await asyncio.gather(*map(all_of, every))
        shares = sorted(len(one.engine.asked) for one in found.hosts)
    assert sum(shares) == 40 and shares[0] > 8


async def test_no_request_that_had_not_begun_is_lost(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, pause=0.02) as found:
        for one in found.hosts:
            one.engine.gate = asyncio.Event()
        every = [
            ask(found.pool, request(micro_tokenizer, n, tenant=f"t{n}", adapter="maths"))
            for n in range(30)
        ]
        await soon(lambda: sum(len(one.engine.asked) for one in found.hosts) == 30)
        dies, lives = found.hosts
        dying = {one.id for one in dies.engine.asked}
        assert 5 < len(dying) < 25
        dies.kill()
        assert lives.engine.gate is not None
        lives.engine.gate.set()
        right = await all_of(
            ask(FakeEngine(micro_tokenizer), request(micro_tokenizer, 0, adapter="maths"))
        )
        assert all(told == right for told in await asyncio.gather(*map(all_of, every)))
        assert {one.id for one in lives.engine.asked} == {f"s{n}" for n in range(30)}
        assert dies.engine.running == {} and found.pool.state().why_not == "1 of 2 engines answer"


async def test_an_answer_that_had_begun_ends_with_a_word(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, pause=0.02) as found:
        wanted = request(micro_tokenizer, 0)
        events = ask(found.pool, wanted)
        assert isinstance(await anext(events), TextDelta)
        found.host_of("s0").kill()
        with pytest.raises(EngineError) as caught:
            await all_of(events)
        assert caught.value.kind == "gone" and caught.value.retry_after
        events.close()  # as whoever asks does in any case
        await all_of(ask(found.pool, request(micro_tokenizer, 1)))


async def test_what_was_in_work_at_two_deaths_is_not_given_to_a_third(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, 3, pause=5.0) as found:
        events = ask(found.pool, request(micro_tokenizer, 0))
        for _ in range(2):
            await soon(lambda: begun_at(found))
            dies = begun_at(found)[0]
            dies.kill()
            await soon(lambda killed=dies: killed not in begun_at(found))
        with pytest.raises(EngineError, match="try again"):
            await anext(events)
        assert len(found.pool._ready()) == 1


async def test_nor_what_two_engines_have_failed_at(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, 4, fail_after=0) as found:
        with pytest.raises(EngineError, match="died") as caught:
            await all_of(ask(found.pool, request(micro_tokenizer, 0)))
        assert caught.value.kind == "gone"
        assert sum(len(one.engine.asked) for one in found.hosts) == 2


def begun_at(found: Pooled) -> list[FakeHost]:
    """Engines that have begun with something, as the pool knows."""
    begun = {
        backend.address
        for backend in found.pool._backends
        if any(one.begun for one in backend.sequences.values())
    }
    return [one for one in found.hosts if one.url in begun]


async def test_a_full_engine_is_passed_by_until_all_are(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, pause=0.05, most=3) as found:
        every = [ask(found.pool, request(micro_tokenizer, n)) for n in range(7)]
        came = await asyncio.gather(*map(all_of, every), return_exceptions=True)
    refused = [one for one in came if isinstance(one, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], EngineError) and refused[0].kind == "full"
    assert refused[0].retry_after == 3


async def test_other_refusals_are_told(micro_tokenizer: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise EngineError("its rank is too large", "adapter")

    async with pooled(micro_tokenizer) as found:
        for one in found.hosts:
            one.engine.submit = refuse  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="rank") as caught:
            await all_of(ask(found.pool, request(micro_tokenizer, 0, adapter="maths")))
        assert caught.value.kind == "adapter"


async def test_who_gives_up_frees_the_place_and_hears_how_far_it_came(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, 1, pause=0.02) as found:
        engine, told = found.hosts[0].engine, list[Any]()
        cancel = found.pool.submit(request(micro_tokenizer, 0), None, told.append)
        await soon(lambda: len(told) == 3)
        cancel()
        cancel()
        await soon(lambda: engine.cancelled == ["s0"])
        assert told[-1] == Ended("cancelled", len(request(micro_tokenizer, 0).prompt), 3)
        assert len(told) == 4 and not engine.running
        engine.gate = asyncio.Event()
        waits = list[Any]()
        found.pool.submit(request(micro_tokenizer, 1), None, waits.append)()
        await soon(lambda: engine.cancelled == ["s0", "s1"])
        assert waits == [], "nothing was computed for it"


async def test_a_gate_that_is_gone_frees_all_that_it_asked_for(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, 1, pause=0.05) as found:
        engine = found.hosts[0].engine
        ask(found.pool, request(micro_tokenizer, 0))
        other = pool_of(found.hosts[0].url)
        await other.start()
        events = ask(other, request(micro_tokenizer, 1))
        await soon(lambda: len(engine.running) == 2)
        found.pool._backends[0]._wire.transport.abort()  # type: ignore[union-attr]
        await soon(lambda: set(engine.running) == {"s1"})
        assert isinstance((await all_of(events))[-1], Ended)
        await other.stop(0)


async def test_stopping_an_engine_harms_nobody(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, pause=0.02) as found:
        first = ask(found.pool, request(micro_tokenizer, 0))
        await anext(first)
        leaves = found.host_of("s0")
        stopping = asyncio.create_task(leaves.host.stop(30))
        others = [ask(found.pool, request(micro_tokenizer, n)) for n in range(1, 9)]
        await soon(lambda: len(found.pool._ready()) == 1)
        others += [ask(found.pool, request(micro_tokenizer, n)) for n in range(9, 17)]
        for one in [first, *others]:
            last = (await all_of(one))[-1]
            assert isinstance(last, Ended) and last.finish == "stop"
        await stopping
        assert [one.id for one in leaves.engine.asked] == ["s0"]
        leaves.kill()


async def test_stopping_the_gate_lets_answers_end(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, pause=0.01) as found:
        events = ask(found.pool, request(micro_tokenizer, 0))
        await anext(events)
        stopping = asyncio.create_task(found.pool.stop(20))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="stopping"):
            ask(found.pool, request(micro_tokenizer, 1))
        assert isinstance((await all_of(events))[-1], Ended)
        await stopping
        assert not found.pool.state().ready
    async with pooled(micro_tokenizer, pause=1) as found:
        slow = ask(found.pool, request(micro_tokenizer, 0))
        await soon(lambda: bool(found.hosts[0].engine.running or found.hosts[1].engine.running))
        await found.pool.stop(0)
        assert (await all_of(slow))[-1].finish == "cancelled"  # type: ignore[union-attr]
        await soon(lambda: not any(one.engine.running for one in found.hosts))


async def test_an_engine_that_comes_back_is_used_and_holds_what_is_pinned(
    micro_tokenizer: Any,
) -> None:
    async with pooled(micro_tokenizer) as found:
        maths = files("maths")
        assert maths is not None
        await found.pool.load(maths, pin=True)
        assert all(one.engine.slots == {"maths": True} for one in found.hosts)
        pinned = [slot.adapter for slot in found.pool.state().slots if slot.pinned]
        assert pinned == ["maths", "maths"]
        back = found.hosts[0]
        back.kill()
        await soon(lambda: len(found.pool._ready()) == 1)
        back.engine.slots = {}
        await back.start()
        await soon(lambda: len(found.pool._ready()) == 2 and back.engine.slots == {"maths": True})
        assert found.pool.state().why_not == ""
        assert await found.pool.unload("maths") and not back.engine.slots
        assert not await found.pool.unload("maths")
        for name in ("poems", "law"):
            await found.pool.load(AdapterFiles(name, Path(name), "d", 8, 1), pin=True)
        with pytest.raises(EngineError, match="pinned"):
            await found.pool.load(maths)


async def test_adapters_are_looked_up_by_name_in_the_engines_own_folder(
    micro_tokenizer: Any,
) -> None:
    host = FakeHost(FakeEngine(micro_tokenizer))
    await host.start()
    found = host.host.files(AdapterMark(name="maths", digest="d" * 64, rank=8, bytes=10))
    assert found == AdapterFiles("maths", Path("/nowhere/library/maths"), "d" * 64, 8, 10)
    for name in ("../maths", "a/b", "", ".", "..", "/etc", "a\n", "a" * 129):
        with pytest.raises(ValueError):
            AdapterMark(name=name, digest="", rank=1, bytes=1)
    host.kill()


async def test_a_real_engine_loads_only_what_was_checked(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    adapters = {name: made_adapter(seed, 4, MLP) for seed, name in enumerate(("mine", "other"))}
    for name, adapter in adapters.items():
        written(tmp_path / name, adapter)
    library = Library(tmp_path, base_facts(tiny_folder))
    settings = EngineSettings(base="tiny", device="cpu", precision="fp32", slots=2)
    engine = open_inprocess(tiny_folder, settings)
    await engine.start()
    host = Headless(engine, tmp_path, KEY)
    server = await asyncio.get_running_loop().create_server(host.wire, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    backends = EngineSettings(base="tiny", kind="pool", backends=(url,), key=KEY)
    pool = EnginePool(tiny_folder, backends, start_seconds=5)
    await pool.start()
    prompt = tuple(tiny_tokenizer.encode("question: how many cats? answer"))
    for name in (None, "mine"):
        wanted = SequenceRequest(f"{name}", "t", prompt, 9, adapter=name, ignore_end=True)
        told = await all_of(Events(pool, wanted, library.open(name) if name else None))
        model = merged(adapters[name] if name else None, make_tiny_model)
        text = tiny_tokenizer.decode(alone(model, prompt, 9), skip_special_tokens=True)
        assert "".join(one.text for one in told if isinstance(one, TextDelta)) == text
        assert told[-1] == Ended("length", len(prompt), 9, 0)
    checked = library.open("other")
    written(tmp_path / "other", adapters["mine"])  # it is changed behind the gate's back
    wanted = SequenceRequest("other", "t", prompt, 9, adapter="other")
    with pytest.raises(EngineError, match="changed") as caught:
        await all_of(Events(pool, wanted, checked))
    assert caught.value.kind == "adapter"
    await pool.stop(0)
    await host.stop(0)
    server.close()


async def test_operators_see_every_engine(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer) as found:
        first, second = found.hosts
        app = create_app(ServeSettings(base="micro"), found.pool, FakeLibrary())  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            first.kill()
            await soon(lambda: len(found.pool._ready()) == 1)
            part = {"status": "ready", "detail": "1 of 2 engines answer"}
            assert (await client.get("/readyz")).json() == part
            metrics = (await client.get("/metrics")).text.splitlines()
            for url, rate in ((first.url, 0.0), (second.url, 12.5)):
                assert f'laura_engine_ready{{engine="{url}"}} {float(rate > 0)}' in metrics
                assert f'laura_engine_tokens_per_second{{engine="{url}"}} {rate}' in metrics
            assert "laura_ready 1.0" in metrics and "laura_slots 2.0" in metrics
            state = (await client.get("/admin/state")).json()
            assert [one["ready"] for one in state["engines"].values()] == [False, True]
            assert "closed" in state["engines"][first.url]["why_not"]
            second.kill()
            await soon(lambda: not found.pool._ready())
            assert (await client.get("/readyz")).status_code == 503
            body = {"model": "micro", "prompt": "a"}
            refused = await client.post("/v1/completions", json=body)
            assert refused.status_code == 503 and refused.headers["retry-after"]


# ----- who is no engine, and who is no gate -----


async def test_what_cannot_be_used_is_told_at_the_start(micro_tokenizer: Any) -> None:
    async with pooled(micro_tokenizer, 1) as found:
        good = found.hosts[0].url
        other = FakeHost(FakeEngine(micro_tokenizer))  # another base
        await other.start()
        with socket.create_server(("127.0.0.1", 0)) as place:
            free = place.getsockname()[1]
        nobody = f"http://127.0.0.1:{free}"
        for urls, key, words in (
            ([other.url], KEY, "another base"),
            ([good], "x" * 32, "refuses the key"),
            ([other.url, good], "x" * 32, "refuses the key"),
        ):
            pool = pool_of(*urls, key=key, seconds=60)
            with pytest.raises(ModelError, match=words):
                await asyncio.wait_for(pool.start(), 10)
        with pytest.raises(ModelError, match=f"{nobody}: .*"):
            await pool_of(nobody, seconds=0.3).start()
        some = pool_of(other.url, good, nobody)
        await some.start()
        state = some.state()
        assert state.ready and state.why_not == "1 of 3 engines answer"
        assert "another base" in state.engines[other.url].why_not
        assert not state.engines[nobody].ready and state.engines[good].ready
        await some.stop(0)
        other.kill()


async def test_versions_and_contexts_must_be_the_same(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(micro_tokenizer, 2, context_tokens=200) as found:
        assert found.pool.context_tokens == 200
        found.hosts[0].kill()
        found.hosts[0].engine.context_tokens = 190
        await found.hosts[0].start()
        await soon(lambda: "190 tokens" in found.pool._backends[0].why)
        assert len(found.pool._ready()) == 1
        monkeypatch.setattr("laura.serve.headless.__version__", "9.9")
        pool = pool_of(found.hosts[1].url)
        with pytest.raises(ModelError, match=r"Laura 9\.9"):
            await pool.start()


GREETING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
GARBAGE = {
    "nothing": (b"", "does not answer"),
    "noise": (bytes(range(256)) * 400, "too much"),
    "a web server": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "no engine"),
    "an endless head": (b"HTTP/1.1 101\r\n" + b"x: y\r\n" * 9999, "too much"),
    "an endless line": (GREETING + b"x" * (40 << 20), "too much"),
    "no message": (GREETING + b'{"kind": "hello"}\n', "another language"),
    "no number": (
        GREETING + b'{"kind": "report", "state": {"ready": true, "tokens_per_second": NaN}}\n',
        "another language",
    ),
    "deep": (GREETING + b"[" * 100_000 + b"\n", "another language"),
    "a large number": (
        GREETING + b'{"kind": "done", "number": ' + b"9" * 99_999 + b"}\n",
        "another",
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_an_engine_that_says_anything(
    micro_tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_file, "CONNECT_SECONDS", 2.0)
    said, words = GARBAGE[name]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        with suppress(OSError):
            await writer.drain()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with pooled(micro_tokenizer, 1) as found:
        pool = pool_of(url, found.hosts[0].url)
        await pool.start()
        assert [one.ready for one in pool._backends] == [False, True]
        assert words in pool._backends[0].why
        assert isinstance((await all_of(ask(pool, request(micro_tokenizer, 0))))[-1], Ended)
        await pool.stop(0)
    server.close()


WRONG: dict[str, list[Any]] = {
    "tokens that there are not": [TextDelta("a", ((10**9, -1.0, ()),))],
    "scores of another prompt": [PromptScores(((1, None, ()),))],
    "more text than was asked for": [TextDelta("a")] * 20,
    "more tokens than was asked for": [Ended("stop", 3, 999)],
    "less than nothing": [Ended("stop", 3, -1)],
    "a larger cache than prompt": [Ended("stop", 3, 1, 999)],
}


@pytest.mark.parametrize("name", WRONG)
async def test_an_engine_that_answers_what_was_not_asked_is_left(
    micro_tokenizer: Any, name: str
) -> None:
    async with pooled(micro_tokenizer, 2) as found:
        wanted = request(micro_tokenizer, 0)
        bad = max(found.hosts, key=lambda one: backend_of(found.pool, one.url).weight("t\n"))

        def submit(ask: SequenceRequest, adapter: Any, tell: Any) -> Any:
            for event in WRONG[name]:
                tell(event)
            return lambda: None

        bad.engine.submit = submit  # type: ignore[method-assign]
        events = ask(found.pool, wanted)
        if isinstance(WRONG[name][0], TextDelta) and not WRONG[name][0].scores:
            with pytest.raises(EngineError):
                await all_of(events)
        else:
            right = ask(FakeEngine(micro_tokenizer), wanted)
            assert await all_of(events) == await all_of(right)
        assert "not asked" in backend_of(found.pool, bad.url).why


def backend_of(pool: EnginePool, url: str) -> Any:
    (found,) = (one for one in pool._backends if one.address == url)
    return found


def upgrade(key: str) -> bytes:
    head = (
        f"GET /engine HTTP/1.1\r\nhost: x\r\nupgrade: laura-engine\r\nauthorization: Bearer {key}"
    )
    return f"{head}\r\n\r\n".encode()


STRANGERS: dict[str, tuple[bytes, bytes]] = {
    "probe": (b"GET /healthz HTTP/1.1\r\n\r\n", b"HTTP/1.1 200"),
    "ready": (b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200"),
    "client": (b"POST /v1/completions HTTP/1.1\r\n\r\n{}", b"HTTP/1.1 404"),
    "no key": (b"GET /engine HTTP/1.1\r\nupgrade: laura-engine\r\n\r\n", b"HTTP/1.1 401"),
    "wrong key": (upgrade("x" * 32), b"HTTP/1.1 401"),
    "strange key": (upgrade("\u00ff" * 32), b"HTTP/1.1 401"),
    "half a key": (upgrade(KEY[:-1]), b"HTTP/1.1 401"),
    "key without upgrade": (upgrade(KEY).replace(b"upgrade", b"x"), b"HTTP/1.1 404"),
    "noise": (bytes(range(256)) * 500, b""),
    "empty": (b"\r\n\r\n", b"HTTP/1.1 404"),
    "endless head": (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 9999, b""),
    "key, then noise": (upgrade(KEY) + b"\x00\xff\n", b"HTTP/1.1 101"),
    "key, then no message": (upgrade(KEY) + b'{"kind": "ask"}\n', b"HTTP/1.1 101"),
    "key, then infinity": (
        upgrade(KEY)
        + b'{"kind": "ask", "request": {"id": "1", "tenant": "t", "prompt": [1], '
        + b'"max_new_tokens": 2, "temperature": Infinity}}\n',
        b"HTTP/1.1 101",
    ),
    "key, then a path": (
        upgrade(KEY)
        + b'{"kind": "load", "number": 1, "pin": false, "adapter": {"name": "../x", '
        + b'"digest": "", "rank": 1, "bytes": 1}}\n',
        b"HTTP/1.1 101",
    ),
    "key, then a large seed": (
        upgrade(KEY)
        + b'{"kind": "ask", "request": {"id": "1", "tenant": "t", "prompt": [1], '
        + b'"max_new_tokens": 2, "seed": 99999999999999999999}}\n',
        b"HTTP/1.1 101",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
async def test_strangers_at_an_engine(micro_tokenizer: Any, name: str) -> None:
    said, answer = STRANGERS[name]
    async with pooled(micro_tokenizer, 1, pause=0.02) as found:
        events = ask(found.pool, request(micro_tokenizer, 0))
        reader, writer = await asyncio.open_connection(*found.hosts[0].place)
        writer.write(said)
        came = b""
        with suppress(ConnectionResetError):
            came = await asyncio.wait_for(reader.read(), 5)  # until it is closed
        writer.close()
        assert came.startswith(answer) or (not came and answer == b"HTTP/1.1 101")
        assert len(found.hosts[0].host.wires) == 1, "the gate's"
        assert isinstance((await all_of(events))[-1], Ended)
        assert [one.id for one in found.hosts[0].engine.asked] == ["s0"]


async def test_silence_ends_a_connection(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laura.serve.headless.HEAD_SECONDS", 0.1)
    monkeypatch.setattr("laura.serve.headless.MOST_CONNECTIONS", 3)
    async with pooled(micro_tokenizer, 1) as found:
        host = found.hosts[0]
        idle = [await asyncio.open_connection(*host.place) for _ in range(4)]
        await soon(lambda: len(host.host.wires) == 3)
        watching = asyncio.create_task(host.host.watch())
        await soon(lambda: len(host.host.wires) == 1)
        watching.cancel()
        for _, writer in idle:
            writer.close()
        assert len(found.pool._ready()) == 1


async def test_an_engine_that_hangs_is_left(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_file, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(pool_file, "SILENCE_SECONDS", 0.4)
    async with pooled(micro_tokenizer) as found:
        await asyncio.sleep(0.6)
        assert len(found.pool._ready()) == 2
        wanted = request(micro_tokenizer, 0)
        hangs = max(found.hosts, key=lambda one: backend_of(found.pool, one.url).weight("t\n"))
        for wire in hangs.host.wires:
            wire.line_received = lambda line: None  # type: ignore[method-assign]
        assert isinstance((await all_of(ask(found.pool, wanted)))[-1], Ended)
        assert "said nothing" in backend_of(found.pool, hangs.url).why


async def test_a_gate_that_does_not_read_is_left(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_file, "MOST_UNSENT_BYTES", 100_000)
    async with pooled(micro_tokenizer, 1) as found:
        _, writer = await asyncio.open_connection(*found.hosts[0].place, limit=1000)
        writer.write(upgrade(KEY) + b'{"kind":"poll"}\n' * 60_000)
        await soon(lambda: len(found.hosts[0].host.wires) == 2)
        await soon(lambda: len(found.hosts[0].host.wires) == 1)
        writer.close()
        assert found.pool._ready()


@pytest.mark.parametrize(
    "text", ["", "short", "k" * 31, "k" * 20 + " " + "k" * 20, "ж" * 40, "k" * 2000]
)
def test_what_is_no_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(UsageError, match="openssl rand"):
        read_engine_key(path)
    path.write_text(f"{KEY}\n")
    assert read_engine_key(path) == KEY
